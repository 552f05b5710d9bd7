"""A plan and a rule over two live endpoints: one answer, released at the reader's pace."""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable

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
from disco_core.live.machine import Machine
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
    seed: int | None = None,
) -> "Run":
    """One answer from two endpoints: iterate over the result with `async for`, then read its `.record`.

    prompt         text in the models' chat template, with the assistant's turn left open; ids, if both endpoints have
                   the same vocabulary; or messages such as {"role": "user", "content": "Why?"}, which each endpoint
                   puts in the chat template of its model
    start_s        loop time the request was meant to start; by default when the iteration starts
    reading_rate   r_c of the pace, tokens per second, unless the rule paces; by default the rule's, or Andes' 4.8
    wait           release tokens at the reader's pace; False yields them as they are generated, with the same times
    stall_s        an endpoint that sends no token for so many seconds has failed, and the other continues
    confirm_s      seconds to wait, at the end of the run, until cancelled work is confirmed to have stopped
    InputError for a bad argument at once; StreamError from the iteration once both endpoints have failed.
    """
    checks.instance_of(plan, DispatchPlan, "plan")
    if rule is not None:
        checks.instance_of(rule, Rule, "rule")
        if rule.paces and not wait:
            raise InputError("wait must be True with a rule that paces: it looks at what is released, got False")
    rate = reading_rate if reading_rate is not None else READING_RATE if rule is None else rule.reading_rate
    prompt, ends = checked_prompt(prompt), (checked(server, "server"), checked(device, "device"))
    builds = rule is not None and type(rule).prompt_for is not Rule.prompt_for
    ids = not (isinstance(prompt, str) or is_chat(prompt))
    if ids and server.vocabulary != device.vocabulary and not builds:
        both = f"{server.name} and {device.name}"
        raise InputError(f"prompt must be a text or messages where {both} have different vocabularies, got ids")
    machine = Machine(
        prompt,
        ends,
        rule,
        checks.count(max_tokens, "max_tokens"),
        checks.positive(rate, "reading_rate"),
        checks.positive(stall_s, "stall_s"),
        checks.positive(confirm_s, "confirm_s"),
        None if seed is None else non_negative_int(seed, "seed"),
        checks.instance_of(wait, bool, "wait"),
    )
    constrained = plan.constraint.end if plan.constraint else End.DEVICE
    drawn = None if rng is None else checks.generator(rng)
    delays = plan.draw(np.array([machine.count(constrained)]), drawn)[:, 0]
    machine.delays = float(delays[End.SERVER]), float(delays[End.DEVICE])
    return Run(machine, None if start_s is None else checks.number(start_s, "start_s"))


class Run:
    """An answer in the making: an async iterable of `StreamedToken`, and its `record`.

    When the loop over it is left, in whatever way, both endpoints are cancelled. `async with` and `aclose` wait until
    they have stopped; within `async with`, a loop that was left may be resumed.
    """

    def __init__(self, machine: Machine, start_s: float | None) -> None:
        self._machine, self._start_s = machine, start_s
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
        machine, loop = self._machine, asyncio.get_running_loop()
        machine.start = loop.time() if self._start_s is None else self._start_s
        self._producer = producer = asyncio.create_task(machine.run())
        producer.add_done_callback(lambda _: machine.news.set())
        tokens = machine.record.tokens
        try:
            for index in range(machine.max_tokens):
                while len(tokens) <= index and not producer.done():
                    machine.news.clear()
                    await machine.news.wait()
                if len(tokens) <= index:
                    break
                if machine.wait:
                    due = machine.start + machine.due(index).released_s
                    await sleep_until(due)
                    if self._ending:
                        break
                    machine.record.late_s.append(max(0.0, loop.time() - due))
                    machine.released = index + 1
                yield tokens[index]
            await asyncio.wait([producer])
            if not producer.cancelled():  # by `aclose` in another task
                producer.result()
        finally:
            await self._ended()

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
