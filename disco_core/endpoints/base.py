"""What a live stream asks of an end: tokens from a prefix, one after the other, and an end that is confirmed."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Protocol, TypeGuard

import numpy as np

from disco_core.errors import InputError

Message = Mapping[str, str]  # its "role" and its "content", as chat APIs have them
ROLES = ("system", "user", "assistant")  # what every template knows; of others each makes what it likes
# text, or ids of the endpoint's own vocabulary, the assistant's turn left open; or messages, which each end builds as
# its own model's chat template wants them
Prompt = str | Sequence[int] | Sequence[Message]


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the answer: its place from 0, its text, and its id where the endpoint tells."""

    index: int
    text: str
    id: int | None = None


@dataclass(frozen=True)
class Prefix:
    """All that an end needs to begin or to go on: no cache and no sampler state moves, only this.

    prompt       as the rule built it for this end; of messages the last is never the assistant's
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
    raises an EndpointError where it did not in time. All of it, closing too, happens in one task, so that
    `asyncio.timeout`, a TaskGroup or a ContextVar may be held over a `yield`.

    name         in records and messages
    vocabulary   fingerprint: equal fingerprints exchange ids, others text
    context      tokens of prompt and answer that fit; None where unknown
    continues    whether it can go on in an open assistant turn

    An end whose tokens are held up on their way may also have `ahead(tokens)`: how many it has made for a piece of
    work, a generator it gave, beyond those that came out. They are charged too. `read(tokens)`: how many tokens of
    the prefix it has read for that work, None where it cannot tell. `reuses`: whether a piece of work goes on from
    what the last one has read of the same beginning, and is charged for the rest only. `built(prompt)`: messages as
    the text that its model reads, which is what it then gets; without it they are what it gets.
    """

    name: str
    vocabulary: str
    context: int | None
    continues: bool

    def count(self, prompt: Prompt) -> int:
        """Tokens of a prompt as built, in this end's own tokenizer; where it cannot tell an estimate, no failure."""
        ...

    def generate(self, prefix: Prefix) -> AsyncGenerator[Token, None]:
        """The tokens that follow."""
        ...


def ahead(endpoint: Endpoint, tokens: AsyncGenerator[Token, None]) -> int:
    """How many tokens an end has made for a piece of work beyond those it has yielded: 0 unless it has `ahead`."""
    told = getattr(endpoint, "ahead", None)
    return int(told(tokens)) if told else 0


def built(endpoint: Endpoint, prompt: Prompt) -> Prompt:
    """Messages as an end builds them, if it does; anything else as it is."""
    build = getattr(endpoint, "built", None)
    return build(prompt) if build and is_chat(prompt) else prompt


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
    """A text that can be encoded, a list of ids, or messages; InputError otherwise."""
    try:
        if isinstance(value, str):
            value.encode()
            prompt: Prompt = value
        elif not isinstance(value, Sequence | np.ndarray) or isinstance(value, bytes | bytearray | memoryview):
            raise TypeError
        else:
            prompt = _messages(value) if is_chat(value) else [index(id) for id in value]
    except (TypeError, UnicodeEncodeError):
        wanted = 'a text, a list of token ids or a list of messages such as {"role": "user", "content": "Why?"}'
        raise InputError(f"prompt must be {wanted}, got {value!r:.80}") from None
    if not prompt:
        raise InputError("prompt must not be empty")
    return prompt


def is_chat(prompt: Any) -> TypeGuard[Sequence[Message]]:
    """Whether a prompt is a list of messages."""
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def own(prompt: Prompt) -> Prompt:
    """A copy, for whoever may change what it is given."""
    if isinstance(prompt, str):
        return prompt
    return [dict(message) for message in prompt] if is_chat(prompt) else [*prompt]


def _messages(values: Sequence[Any]) -> list[Message]:
    """Messages of nothing but a role and a text, the last of them not the assistant's."""
    for message in values:
        fields = {str(key): message[key] for key in message}
        if fields.keys() != {"role", "content"}:
            found = ", ".join(fields) or "nothing"
            raise InputError(f"prompt must have messages of a role and a content alone, got one with {found}")
        if fields["role"] not in ROLES:
            raise InputError(
                f"prompt must have messages with a role of {', '.join(ROLES)}, got {fields['role']!r:.80}"
            )
        if not isinstance(fields["content"], str):
            raise InputError(f"prompt must have messages whose content is a text, got {fields['content']!r:.80}")
        fields["content"].encode()
    if values[-1]["role"] == "assistant":
        raise InputError("prompt must not end with the assistant's message: its turn is what is to be generated")
    if not values[-1]["content"].strip():
        raise InputError("prompt must not be empty, but its last message is")
    return [dict(message) for message in values]


def whole(value: Any, name: str) -> int:
    """A whole number of at least 0, such as a seed; InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise InputError(f"{name} must be a whole number of at least 0, got {value!r:.80}")
    return int(value)


def words(prompt: str | Sequence[Message]) -> str:
    """A text, or what all messages say, without what a template puts around them."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def estimate(prompt: Prompt) -> int:
    """Tokens of a prompt where nobody counts: a rule of thumb for English, four bytes a token."""
    return -(-len(words(prompt).encode()) // 4) if isinstance(prompt, str) or is_chat(prompt) else len(prompt)


async def ended(task: "asyncio.Task[None]") -> None:
    """Wait until a task that was told to stop has; its exception is raised, unless it was cancelled.

    Whoever waits no longer cancels it once more, so that it is not left behind.
    """
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody else will look
        task.cancel()
        raise
    if not task.cancelled():
        task.result()


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
