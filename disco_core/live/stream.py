"""A plan and a rule over two live endpoints: one answer, released at the reader's pace."""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

import numpy as np

from disco_core import checks
from disco_core.cost import End
from disco_core.delivery import READING_RATE
from disco_core.dispatch import DispatchPlan
from disco_core.endpoints.base import (
    Endpoint,
    Prompt,
    checked,
    checked_prompt,
    is_chat,
    non_negative_int,
    sleep_until,
)
from disco_core.errors import InputError
from disco_core.live.generation import Settings
from disco_core.live.machine import Machine
from disco_core.live.prompts import Prompts
from disco_core.migration import Rule
from disco_core.record import Record, StreamedToken


def stream(
    prompt: Prompt,
    *,
    plan: DispatchPlan,
    server: Endpoint,
    device: Endpoint,
    rule: Rule | None = None,
    max_tokens: int = 256,
    rng: np.random.Generator | None = None,
    start_s: float | None = None,
    reading_rate: float | None = None,
    wait: bool = True,
    stall_s: float = 30.0,
    confirm_s: float = 10.0,
    first_token_s: float | Callable[[int], float] | None = None,
    after_filter: bool = False,
    on_reasoning: Callable[[str, End], None] | None = None,
    seed: int | None = None,
) -> "Run":
    """One answer from two endpoints: iterate over the result with `async for`, then read its `.record`.

    prompt         text in the models' chat template, with the assistant's turn left open; ids, if both endpoints have
                   the same vocabulary; or messages such as {"role": "user", "content": "Why?"}, which each endpoint
                   puts in the chat template of its model
    start_s        loop time the request was meant to start; by default when the iteration starts
    reading_rate   r_c of the pace, tokens per second, unless the rule has its own pace; by default the rule's, or
                   Andes' 4.8
    wait           release tokens at the reader's pace; False yields them as they are generated, with the same times
    stall_s        an endpoint that sends no token for so many seconds has failed, and the other continues
    confirm_s      seconds to wait, at the end of the run, until cancelled work is confirmed to have stopped
    first_token_s  deadline of an endpoint's first token in seconds from its start, or a function of its prompt's
                   tokens: after it the other endpoint is started as well; that prefill counts as a failover's
    after_filter   whether the other endpoint may continue where one's content filter stopped the answer
    on_reasoning   called with each piece of reasoning text and its endpoint; reasoning is no part of the answer
    InputError for a bad argument at once; StreamError from the iteration once both endpoints have failed.
    """
    checks.instance_of(plan, DispatchPlan, "plan")
    endpoints = checked(server, "server"), checked(device, "device")
    prompt, pace = checked_prompt(prompt), Pace(rule, reading_rate)
    if pace.by_rule and not checks.instance_of(wait, bool, "wait"):
        raise InputError("wait must be True with a rule that has a pace: it looks at what is released, got False")
    _check_ids(prompt, endpoints, rule)
    settings = Settings(
        checks.count(max_tokens, "max_tokens"),
        checks.positive(stall_s, "stall_s"),
        checks.positive(confirm_s, "confirm_s"),
        None if seed is None else non_negative_int(seed, "seed"),
        _deadline(first_token_s),
        checks.instance_of(after_filter, bool, "after_filter"),
        on_reasoning,
    )
    prompts = Prompts(prompt, endpoints, rule, Record())
    for end in End:
        prompts.check(end)
    start = None if start_s is None else checks.number(start_s, "start_s")
    draws = _Delays(plan, prompts, None if rng is None else checks.generator(rng))
    return Run(Machine(prompts, rule, pace, settings), draws, start, checks.instance_of(wait, bool, "wait"))


def _check_ids(prompt: Prompt, endpoints: tuple[Endpoint, Endpoint], rule: Rule | None) -> None:
    ids = not (isinstance(prompt, str) or is_chat(prompt))
    builds = rule is not None and type(rule).prompt_for is not Rule.prompt_for
    server, device = endpoints
    if ids and server.vocabulary != device.vocabulary and not builds:
        both = f"{server.name} and {device.name}"
        raise InputError(f"prompt must be a text or messages where {both} have different vocabularies, got ids")


def _deadline(first_token_s: float | Callable[[int], float] | None) -> Callable[[int], float] | None:
    if first_token_s is None or callable(first_token_s):
        return first_token_s
    seconds = checks.positive(first_token_s, "first_token_s")
    return lambda _: seconds


class Pace:
    """When tokens are due: at the reading rate from the first one on, or as a rule's own `due_s` says."""

    def __init__(self, rule: Rule | None, reading_rate: float | None) -> None:
        if rule is not None:
            checks.instance_of(rule, Rule, "rule")
        default = READING_RATE if rule is None else rule.reading_rate
        rate = checks.positive(default if reading_rate is None else reading_rate, "reading_rate")
        self.rule, self.reading_rate, self.released = rule, rate, 0
        self.by_rule = rule is not None and type(rule).due_s is not Rule.due_s

    def due_s(self, machine: Machine, index: int, source: End) -> float:
        """The earliest release of a token, in seconds since the request was meant to start."""
        rule = self.rule
        if index and self.by_rule and rule is not None and rule.target is not None:
            return rule.due_s(machine.state(rule.target), index, source)
        return (machine.record.ttft_s or 0.0) + index / self.reading_rate

    def next(self, machine: Machine) -> StreamedToken:
        """The token to be released next, with its release time as known now."""
        index, tokens = self.released, machine.record.tokens
        if self.by_rule:
            tokens[index] = replace(tokens[index], due_s=self.due_s(machine, index, tokens[index].source))
        return tokens[index]


class _Delays:
    """When the plan starts each endpoint: drawn once the constrained endpoint's count of the prompt is known."""

    def __init__(self, plan: DispatchPlan, prompts: Prompts, rng: np.random.Generator | None) -> None:
        self.plan, self.prompts, self.rng = plan, prompts, rng
        self.end = plan.constraint.end if plan.constraint else End.DEVICE
        remote = prompts.endpoints[self.end].remote
        self._drawn = None if remote else self._draw(prompts.now(self.end))

    async def drawn(self) -> tuple[float, float]:
        """Seconds until the server and the device start."""
        return self._drawn or self._draw(await self.prompts.tokens(self.end))

    def _draw(self, tokens: int) -> tuple[float, float]:
        delays = self.plan.draw(np.array([tokens]), self.rng)[:, 0]
        return float(delays[End.SERVER]), float(delays[End.DEVICE])


class Run:
    """An answer in the making: an async iterable of `StreamedToken`, and its `record`.

    When the loop over it is left, in whatever way, both endpoints are cancelled. `async with` and `aclose` wait until
    they have stopped; within `async with`, a loop that was left may be resumed.
    """

    def __init__(self, machine: Machine, delays: _Delays, start_s: float | None, wait: bool) -> None:
        self._machine, self._delays, self._start_s, self._wait = machine, delays, start_s, wait
        self._begun = False
        self._producer: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._held: AsyncGenerator[StreamedToken, None] | None = None
        # a weak reference, so that the generator is closed with the loop over it
        self._iterator: Callable[[], AsyncGenerator[StreamedToken, None] | None] = lambda: None

    @property
    def record(self) -> Record:
        """What has happened so far; final once the iteration has ended."""
        return self._machine.record

    def __aiter__(self) -> AsyncGenerator[StreamedToken, None]:
        iterator = self._iterator()
        if iterator is None:
            iterator = self._released()
            self._iterator = weakref.ref(iterator)
        return iterator

    async def __aenter__(self) -> "Run":
        self._held = aiter(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """The reader's cancel: returns once both endpoints have confirmed that they stopped, or after `confirm_s`.

        It may be called from another task than the reader's; the reader's loop then ends, at the latest when the next
        token is due.
        """
        iterator, self._held, self._begun = self._iterator(), None, True
        if iterator is not None and not iterator.ag_running:  # type: ignore[attr-defined]
            await iterator.aclose()
        await self._ended()

    async def _released(self) -> AsyncGenerator[StreamedToken, None]:
        if self._begun:
            return
        self._begun = True
        machine, pace, loop = self._machine, self._machine.pace, asyncio.get_running_loop()
        start = loop.time() if self._start_s is None else self._start_s
        self._producer = producer = asyncio.create_task(self._produced(start))
        producer.add_done_callback(lambda _: machine.news.set())
        tokens, late_s = machine.record.tokens, machine.record.late_s
        try:
            for index in range(machine.settings.max_tokens):
                while len(tokens) <= index and not producer.done():
                    machine.news.clear()
                    await machine.news.wait()
                if len(tokens) <= index:
                    break
                if self._wait:
                    due = start + pace.next(machine).released_s
                    await sleep_until(due)
                    if self._ending:
                        break
                    late_s.append(max(0.0, loop.time() - due))
                pace.released = index + 1
                yield tokens[index]
            await asyncio.wait([producer])
            if not producer.cancelled():  # by `aclose` in another task
                producer.result()
        finally:
            await self._ended()

    async def _produced(self, start: float) -> None:
        try:
            await self._machine.run(start, await self._delays.drawn())
        except asyncio.CancelledError:
            if self._ending is None:
                raise
            # by `_end`: it ends here, since the traceback of a cancelled task would be a reference cycle

    async def _ended(self) -> None:
        """Return when all work has stopped. A cancel meanwhile does not shorten the wait; it is raised afterwards."""
        if self._ending is None and self._producer is not None:
            self._ending = asyncio.create_task(self._end(self._producer))
        cancelled: asyncio.CancelledError | None = None
        while self._ending is not None and not self._ending.done():
            try:
                await asyncio.wait([self._ending])
            except asyncio.CancelledError as again:
                cancelled = again
        if cancelled:
            raise cancelled

    async def _end(self, producer: "asyncio.Task[None]") -> None:
        producer.cancel()
        await asyncio.wait([producer])
        await self._machine.close()
