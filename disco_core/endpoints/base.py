"""The interface of an endpoint: tokens that follow a prefix, one at a time, and a confirmed cancellation."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, TypeGuard

import numpy as np

from disco_core import checks
from disco_core.errors import InputError

Message = Mapping[str, str]  # its "role" and its "content", as in chat APIs
ROLES = ("system", "user", "assistant")  # those that every chat template supports
# text, or ids of the endpoint's own vocabulary, with the assistant's turn left open; or messages, which each endpoint
# puts in the chat template of its model
Prompt = str | Sequence[int] | Sequence[Message]


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the answer: its index from 0, its text, and its id where the endpoint reports one.

    reasoning   the text is reasoning, which is no part of the answer: it has the index of the answer's next token
    """

    index: int
    text: str
    id: int | None = None
    reasoning: bool = False


@dataclass(frozen=True)
class Prefix:
    """What an endpoint starts or continues from: a hand-over moves this, but no cache and no sampler state.

    prompt       as the rule made it for this endpoint; if it is messages, the last is never the assistant's
    generated    tokens the answer already has, from either endpoint
    max_tokens   how many more may follow, at least 1
    """

    prompt: Prompt
    generated: tuple[Token, ...]
    max_tokens: int
    seed: int | None = None


class Generation:
    """A running generation: iterate over it for tokens, close it to cancel, ask it what it has done.

    prefilled    prefix tokens prefilled so far; None where unknown
    undelivered  tokens generated (or billed) beyond those that were yielded; they are charged too
    ended        whether no further token is being generated: those not yet yielded are on their way. An answer whose
                 end is known is not handed over.

    It ends when the answer is complete, and raises an EndpointError otherwise: an answer that was cut never ends
    without an error. `aclose` cancels it at any moment, also during prefill, and returns once the endpoint has
    confirmed that it stopped, or raises an EndpointError if it did not in time.
    """

    prefilled: int | None = None
    undelivered: int = 0
    ended: bool = False

    def __init__(self, tokens: AsyncGenerator[Token, None]) -> None:
        self._tokens = tokens

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> Token:
        return await anext(self._tokens)

    async def aclose(self) -> None:
        """Cancel, and return when the endpoint has stopped."""
        await self._tokens.aclose()


class Endpoint:
    """What produces tokens. An endpoint of one's own needs a `name` and `generate`; the rest has these defaults.

    name          in records and messages
    vocabulary    fingerprint: endpoints with equal fingerprints exchange ids, others text; "" equals no other
    context       tokens of prompt and answer that fit; None where unknown
    continues     whether it can continue an open assistant turn; one that cannot is never a target
    prefix_cache  whether a generation continues from the common beginning with the last one, and is charged for the
                  rest only
    remote        whether `count` and `apply_chat_template` ask a server: a stream then calls them in a thread, and
                  uses an estimate until the answer is there
    """

    name: str = "endpoint"
    vocabulary: str = ""
    context: int | None = None
    continues: bool = False
    prefix_cache: bool = False
    remote: bool = False

    def count(self, prompt: Prompt) -> int:
        """Tokens of a prompt, with chat template, by its own tokenizer; an `Estimate`, no error, if that fails."""
        return estimate(prompt)

    def apply_chat_template(self, prompt: Prompt) -> Prompt:
        """Messages as text in the model's chat template, which `generate` then gets; here they stay messages."""
        return prompt

    def generate(self, prefix: Prefix) -> Generation:
        """The tokens that follow a prefix."""
        raise NotImplementedError


def checked(value: Any, name: str) -> Endpoint:
    """The value, if it has all that an `Endpoint` must have; InputError, which names the field, otherwise."""
    wanted = (*Endpoint.__annotations__, "count", "apply_chat_template", "generate")
    missing = [one for one in wanted if not hasattr(value, one)]
    if getattr(type(value), "generate", None) is Endpoint.generate:
        missing.append("generate")
    if isinstance(value, type) or missing:
        lacking = f", which has no {', '.join(missing)}" if len(missing) < len(wanted) and missing else ""
        raise InputError(f"{name} must be an endpoint, got {value!r:.80}{lacking}")
    kinds = {"name": str, "vocabulary": str, "continues": bool, "prefix_cache": bool, "remote": bool}
    for field, kind in kinds.items():
        checks.instance_of(getattr(value, field), kind, f"{name}: {field}")
    if value.context is not None:
        checks.count(value.context, f"{name}: context")
    for field in ("count", "apply_chat_template", "generate"):
        if not callable(getattr(value, field)):
            raise InputError(f"{name}: {field} must be a function, got {getattr(value, field)!r:.80}")
    endpoint: Endpoint = value
    return endpoint


def checked_prompt(value: Any) -> Prompt:
    """The value, if it is a text that can be encoded, a list of ids, or messages; InputError otherwise."""
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


def copy_prompt(prompt: Prompt) -> Prompt:
    """A copy of a prompt, to pass to code that may change it."""
    if isinstance(prompt, str):
        return prompt
    return [dict(message) for message in prompt] if is_chat(prompt) else [*prompt]


def _messages(values: Sequence[Any]) -> list[Message]:
    """Messages that have only a role and a content, the last not the assistant's; InputError otherwise."""
    for message in values:
        fields = {str(key): message[key] for key in message}
        if fields.keys() != {"role", "content"}:
            present = ", ".join(fields) or "nothing"
            raise InputError(f"prompt must have messages of a role and a content alone, got one with {present}")
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


def non_negative_int(value: Any, name: str) -> int:
    """The value, if it is a whole number of at least 0, such as a seed; InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise InputError(f"{name} must be a whole number of at least 0, got {value!r:.80}")
    return int(value)


def words(prompt: str | Sequence[Message]) -> str:
    """The text of a prompt, or the contents of all its messages, without a chat template."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


class Estimate(int):
    """Tokens that had to be estimated, since counting them failed; a stream notes that in its record's warnings."""


def estimate(prompt: Prompt) -> int:
    """Estimated tokens of a prompt: four bytes a token, a rule of thumb for English."""
    return -(-len(words(prompt).encode()) // 4) if isinstance(prompt, str) or is_chat(prompt) else len(prompt)


async def wait_stopped(task: "asyncio.Task[None]") -> None:
    """Wait until a task that was asked to stop has stopped; raise its exception, unless it was cancelled.

    If the wait itself is cancelled, the task is cancelled once more, so that it is not left running.
    """
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # retrieved, since nobody else will
        task.cancel()
        raise
    if not task.cancelled():
        task.result()


async def sleep_until(when: float) -> None:
    """Sleep until a time of the loop's clock: an absolute deadline does not drift as sums of sleeps do."""
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
