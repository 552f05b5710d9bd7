"""The interface of an endpoint: tokens that follow a prefix, one at a time, and a confirmed cancellation."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Protocol, TypeGuard

import numpy as np

from disco_core.errors import InputError

Message = Mapping[str, str]  # its "role" and its "content", as in chat APIs
ROLES = ("system", "user", "assistant")  # those that every chat template supports
# text, or ids of the endpoint's own vocabulary, with the assistant's turn left open; or messages, which each endpoint
# puts in the chat template of its model
Prompt = str | Sequence[int] | Sequence[Message]


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the answer: its index from 0, its text, and its id where the endpoint reports one."""

    index: int
    text: str
    id: int | None = None


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


class Endpoint(Protocol):
    """An endpoint. `generate` yields the tokens after the prefix and returns when the answer is complete.

    It raises an EndpointError otherwise: an answer that was cut never ends without an error. Closing the generator
    cancels the generation at any moment, also during prefill, and returns once the endpoint has confirmed that it
    stopped, or raises an EndpointError if it did not in time. All of it, also closing, happens in one task, so that
    `asyncio.timeout`, a TaskGroup or a ContextVar may be held over a `yield`.

    name         in records and messages
    vocabulary   fingerprint: endpoints with equal fingerprints exchange ids, others text
    context      tokens of prompt and answer that fit; None where unknown
    continues    whether it can continue an open assistant turn

    Four members are optional. `ahead(tokens)`: for a generator that `generate` returned, the number of tokens already
    generated but not yet yielded; they are charged too. `read(tokens)`: the number of prefix tokens prefilled for it,
    None where unknown. `reuses`: whether there is a prefix cache, so that a generation continues from the common
    beginning with the last one and is charged for the rest only. `built(prompt)`: messages as text in the model's
    chat template, which `generate` then gets; without this member it gets the messages.
    """

    name: str
    vocabulary: str
    context: int | None
    continues: bool

    def count(self, prompt: Prompt) -> int:
        """Tokens of a prompt, with chat template, by its own tokenizer; an estimate, not an error, if that fails."""
        ...

    def generate(self, prefix: Prefix) -> AsyncGenerator[Token, None]:
        """The tokens that follow."""
        ...


def ahead(endpoint: Endpoint, tokens: AsyncGenerator[Token, None]) -> int:
    """How many tokens an endpoint has generated beyond those that `tokens` yielded: 0 unless it has `ahead`."""
    report = getattr(endpoint, "ahead", None)
    return int(report(tokens)) if report else 0


def apply_chat_template(endpoint: Endpoint, prompt: Prompt) -> Prompt:
    """Messages in the chat template of an endpoint, if it applies one; any other prompt unchanged."""
    build = getattr(endpoint, "built", None)
    return build(prompt) if build and is_chat(prompt) else prompt


def checked(value: Any, name: str) -> Endpoint:
    """The value, if it has all that an `Endpoint` must have; InputError otherwise."""
    wanted = (*Endpoint.__annotations__, "count", "generate")
    missing = [one for one in wanted if not hasattr(value, one)]
    if isinstance(value, type) or missing:
        lacking = f", which has no {', '.join(missing)}" if len(missing) < len(wanted) and missing else ""
        raise InputError(f"{name} must be an endpoint, got {value!r:.80}{lacking}")
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
