"""What a live stream asks of an end: tokens from a prefix, one after the other, and an end that is confirmed."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Protocol

import numpy as np

from disco_core.errors import InputError

Prompt = str | Sequence[int]  # text, or ids of the endpoint's own vocabulary; the assistant's turn left open


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the answer: its place from 0, its text, and its id where the endpoint tells."""

    index: int
    text: str
    id: int | None = None


@dataclass(frozen=True)
class Prefix:
    """All that an end needs to begin or to go on: no cache and no sampler state moves, only this.

    prompt       as the rule built it for this end
    generated    tokens the answer already has, from whichever end
    max_tokens   how many more may follow, at least 1
    """

    prompt: Prompt
    generated: tuple[Token, ...]
    max_tokens: int
    seed: int | None = None


class Endpoint(Protocol):
    """An end. `generate` yields the tokens after the prefix and returns when the answer is complete.

    It raises an EndpointError otherwise: a stream that is merely cut never ends quietly. Closing the generator
    cancels the work at any moment, prefill included, and returns once the end has confirmed that it stopped, or
    raises an EndpointError where it did not in time. Every token is asked for in a task of its own: what belongs to
    one task (`asyncio.timeout`, a TaskGroup, a ContextVar) cannot be held over a `yield`.

    name         in records and messages
    vocabulary   fingerprint: equal fingerprints exchange ids, others text
    context      tokens of prompt and answer that fit; None where unknown
    continues    whether it can go on in an open assistant turn

    An end whose tokens are held up on their way may also have `ahead(tokens)`: how many it has made for a piece of
    work, a generator it gave, beyond those that came out. They are charged too. `read(tokens)`: how many tokens of
    the prefix it has read for that work, None where it cannot tell. `reuses`: whether a piece of work goes on from
    what the last one has read of the same beginning, and is charged for the rest only.
    """

    name: str
    vocabulary: str
    context: int | None
    continues: bool

    def count(self, prompt: Prompt) -> int:
        """Tokens of a prompt as built, in this end's own tokenizer; once it is gone an estimate, not a failure."""
        ...

    def generate(self, prefix: Prefix) -> AsyncGenerator[Token, None]:
        """The tokens that follow."""
        ...


def ahead(endpoint: Endpoint, tokens: AsyncGenerator[Token, None]) -> int:
    """How many tokens an end has made for a piece of work beyond those it has yielded: 0 unless it has `ahead`."""
    told = getattr(endpoint, "ahead", None)
    return int(told(tokens)) if told else 0


def checked(value: Any, name: str) -> Endpoint:
    """What has all that an endpoint has; InputError otherwise."""
    wanted = (*Endpoint.__annotations__, "count", "generate")
    missing = [one for one in wanted if not hasattr(value, one)]
    if isinstance(value, type) or missing:
        without = f", which has no {', '.join(missing)}" if len(missing) < len(wanted) and missing else ""
        raise InputError(f"{name} must be an endpoint, got {value!r:.80}{without}")
    found: Endpoint = value
    return found


def checked_prompt(value: Any) -> Prompt:
    """A text that can be encoded, or a list of ids; InputError otherwise."""
    try:
        if isinstance(value, str):
            value.encode()
            prompt: Prompt = value
        elif isinstance(value, Sequence | np.ndarray) and not isinstance(value, bytes | bytearray | memoryview):
            prompt = [index(id) for id in value]
        else:
            raise TypeError
    except (TypeError, UnicodeEncodeError):
        raise InputError(f"prompt must be a text or a list of token ids, got {value!r:.80}") from None
    if not prompt:
        raise InputError("prompt must not be empty")
    return prompt


def whole(value: Any, name: str) -> int:
    """A whole number of at least 0, such as a seed; InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise InputError(f"{name} must be a whole number of at least 0, got {value!r:.80}")
    return int(value)


def estimate(text: str) -> int:
    """Tokens of a text where nobody counts: a rule of thumb for English, four bytes a token."""
    return -(-len(text.encode()) // 4)


async def until(when: float) -> None:
    """Sleep until a loop time exactly: an absolute deadline does not drift as sums of sleeps do."""
    loop = asyncio.get_running_loop()
    if when <= loop.time():
        return
    woken: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not woken.done():  # a cancel may have come at that instant
            woken.set_result(None)

    handle = loop.call_at(when, wake)
    try:
        await woken
    finally:
        handle.cancel()
