"""A plan and a rule over two live endpoints: one answer, released at the reader's pace."""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

import numpy as np

from disco_core import checks
from disco_core.cost import End
from disco_core.dispatch import DispatchPlan
from disco_core.endpoints.base import Endpoint, Prompt, checked, checked_prompt, non_negative_int, sleep_until
from disco_core.errors import InputError
from disco_core.live.machine import Machine
from disco_core.live.prompts import Settings
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
    A function or a rule that fails in mid-answer does not end it; the record's warnings say so.
    InputError for a bad argument at once; StreamError from the iteration once both endpoints have failed.
    """
    rule = checks.instance_of(Rule() if rule is None else rule, Rule, "rule")
    if not (rule.target is None or isinstance(rule.target, End)):
        raise InputError(f"the rule's target must be an End or None, got {rule.target!r:.80}")
    if not (on_reasoning is None or callable(on_reasoning)) or asyncio.iscoroutinefunction(on_reasoning):
        raise InputError(f"on_reasoning must be a function that is not async, or None, got {on_reasoning!r:.80}")
    if not (first_token_s is None or callable(first_token_s)):
        first_token_s = checks.positive(first_token_s, "first_token_s")
    settings = Settings(
        prompt=checked_prompt(prompt),
        endpoints=(checked(server, "server"), checked(device, "device")),
        plan=checks.instance_of(plan, DispatchPlan, "plan"),
        rule=rule,
        max_tokens=checks.count(max_tokens, "max_tokens"),
        rng=checks.generator(rng) if rng is not None or plan.probability.shape[1] > 1 else None,
        start_s=None if start_s is None else checks.number(start_s, "start_s"),
        reading_rate=checks.positive(rule.reading_rate if reading_rate is None else reading_rate, "reading_rate"),
        wait=checks.instance_of(wait, bool, "wait"),
        stall_s=checks.positive(stall_s, "stall_s"),
        confirm_s=checks.positive(confirm_s, "confirm_s"),
        first_token_s=first_token_s,
        after_filter=checks.instance_of(after_filter, bool, "after_filter"),
        on_reasoning=on_reasoning,
        seed=None if seed is None else non_negative_int(seed, "seed"),
    )
    machine = Machine(settings)
    if machine.rule_paces and not wait:
        raise InputError("wait must be True with a rule that has a pace: it looks at what is released, got False")
    return Run(machine)


class Run:
    """An answer in the making: an async iterable of `StreamedToken`, and its `record`.

    When the loop over it is left, in whatever way, both endpoints are cancelled. `async with` and `aclose` wait until
    they have stopped; within `async with`, a loop that was left may be resumed.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._producer: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
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
        iterator = aiter(self)
        self._iterator = lambda: iterator
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """The reader's cancel: returns once both endpoints have confirmed that they stopped, or after `confirm_s`.

        It may be called from another task than the reader's; the reader's loop then ends, at the latest when the next
        token is due.
        """
        iterator, self._iterator = self._iterator(), lambda: None
        if iterator is not None and not iterator.ag_running:  # type: ignore[attr-defined]
            await iterator.aclose()
        await self._ended()

    async def _released(self) -> AsyncGenerator[StreamedToken, None]:
        if self._producer or self._ending:
            return
        machine, settings, loop = self._machine, self._machine.settings, asyncio.get_running_loop()
        start = loop.time() if settings.start_s is None else settings.start_s
        self._producer = producer = asyncio.create_task(machine.run(start))
        producer.add_done_callback(lambda _: machine.news.set())
        tokens, late_s = machine.record.tokens, machine.record.late_s
        try:
            for index in range(settings.max_tokens):
                while len(tokens) <= index and not producer.done():
                    machine.news.clear()
                    await machine.news.wait()
                if len(tokens) <= index:
                    break
                if settings.wait:
                    if machine.rule_paces:  # what it says may have changed since the token was generated
                        due_s = machine.due_s(index, tokens[index].source)
                        tokens[index] = replace(tokens[index], due_s=due_s)
                    due = start + tokens[index].released_s
                    await sleep_until(due)
                    if self._ending:
                        break
                    late_s.append(max(0.0, loop.time() - due))
                machine.released = index + 1
                yield tokens[index]
            await asyncio.wait([producer])
            if not producer.cancelled():  # by `aclose` in another task
                producer.result()
        finally:
            await self._ended()

    async def _ended(self) -> None:
        """Return when all work has stopped. A cancel meanwhile does not shorten the wait; it is raised afterwards."""
        self._ending = self._ending or asyncio.create_task(self._end())
        cancelled: asyncio.CancelledError | None = None
        while not self._ending.done():
            try:
                await asyncio.wait([self._ending])
            except asyncio.CancelledError as again:
                cancelled = again
        if cancelled:
            raise cancelled

    async def _end(self) -> None:
        if self._producer:
            self._producer.cancel()
            await asyncio.wait([self._producer])
        await self._machine.generations.close()
