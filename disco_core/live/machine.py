"""The states of one live answer: race, streaming, hand-over and failover, over two endpoints.

    RACE -> STREAM(source) -> [HANDOVER(source -> target)] -> STREAM(target) -> DONE | FAILED

One counter decides: the tokens generated so far. The endpoint that continues starts exactly there. Times are by the
event loop's clock, in seconds since the request was meant to start.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from disco_core.cost import End
from disco_core.endpoints.base import Endpoint, Prefix, Token, copy_prompt
from disco_core.errors import CutError, EndpointError, FilteredError, StreamError
from disco_core.live.generation import GenerationTask
from disco_core.live.prompts import Prompts
from disco_core.migration import Action, Rule, StreamState
from disco_core.record import LATE, HandOver, StreamedToken

if TYPE_CHECKING:
    from disco_core.live.stream import Pace


@dataclass
class Settings:
    """What a stream was asked for; see `stream`."""

    max_tokens: int
    stall_s: float
    confirm_s: float
    seed: int | None
    first_token_s: Callable[[int], float] | None
    after_filter: bool
    on_reasoning: Callable[[str, End], None] | None


class Machine:
    """The states, one method each; `record` is their only output, and `news` is set when it has changed."""

    def __init__(self, prompts: Prompts, rule: Rule | None, pace: "Pace", settings: Settings) -> None:
        self.prompts, self.rule, self.pace, self.settings = prompts, rule, pace, settings
        self.endpoints: Sequence[Endpoint] = prompts.endpoints
        self.record, self.news, self.start = prompts.record, asyncio.Event(), 0.0
        self._generated: list[Token] = []
        self._source: End | None = None  # the endpoint that the answer comes from; None in the first race
        self._failed, self._late = set[End](), set[End]()  # late: started since the other one missed its deadline
        self._running, self._begun = dict[End, GenerationTask](), set[End]()
        self._started_s, self._ran_s = dict.fromkeys(End, 0.0), dict.fromkeys(End, 0.0)
        self._cached = dict.fromkeys(End, 0)  # prefix tokens sent so far to an endpoint with a prefix cache
        self._closing: list[asyncio.Task[None]] = []

    async def run(self, start: float, delays_s: Sequence[float]) -> None:
        """From the request to DONE, or FAILED with a StreamError."""
        self.start = start
        try:
            starts = {end: delay for end, delay in zip(End, delays_s, strict=True) if math.isfinite(delay)}
            source = await self._race(starts, {})
            while source is not None:
                source = await self._stream(source)
            self.record.complete = True
        except StreamError as error:
            self.record.error = error
            raise
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop what still runs, and wait for each until it has stopped, at most `confirm_s`."""
        for end in list(self._running):
            self._stop(end)
        if self._closing:
            await asyncio.wait(self._closing)
        self.prompts.close()

    async def _race(self, starts: dict[End, float], running: dict[End, GenerationTask]) -> GenerationTask | None:
        """RACE: each endpoint starts at its time unless the other answered before; the first token wins.

        An endpoint that fails, or ends without a token, has lost, and the other one starts at once. None: every
        endpoint ended without a token, so the answer is empty.
        """
        while True:
            now = asyncio.get_running_loop().time()  # compared on the loop's scale: a difference of times is rounded
            for end in [end for end in End if self.start + starts.get(end, math.inf) <= now]:
                at = starts.pop(end)
                running[end] = self._begin(end, failover=bool(self._failed) or end in self._late)
                self._add_deadline(end, at, starts, running)
            await self._first_of(running.values(), min(starts.values(), default=None))
            for end, task in sorted(running.items()):  # the server first: it wins a tie
                if not task.next.done():
                    continue
                lost = self._lost(task)
                if lost is None:
                    self._won(task)
                    return task
                del running[end]
                self._fail(task, lost)
                starts |= {other: self._now() for other in End if other not in self._failed | running.keys()}
            if not running and not starts:
                if not self._generated and all(isinstance(one, _EmptyError) for one in self.record.failures):
                    return None
                raise self._none_can_continue()

    def _add_deadline(
        self, end: End, at: float, starts: dict[End, float], running: dict[End, GenerationTask]
    ) -> None:
        """The other endpoint starts once this one is late with its first token, if it was not to start before."""
        limit_s, other = self.settings.first_token_s, End(1 - end)
        if limit_s is None or self._generated or other in self._failed | running.keys():
            return
        deadline = at + limit_s(self.prompts.of(end)[1])
        if deadline < starts.get(other, math.inf):
            starts[other] = deadline
            self._late.add(other)

    def _lost(self, task: GenerationTask) -> BaseException | None:
        failure = task.next.exception()
        if failure is None and task.next.result() is None and not self._generated:
            return _EmptyError(task.endpoint.name, "it ended without a token")
        return failure

    def _won(self, task: GenerationTask) -> None:
        record, self._source = self.record, task.end
        if record.winner is None:
            record.winner = task.end
        if record.handovers and task.end is not record.handovers[-1].target:  # recalled, and faster than the target
            source = record.handovers[-1].target
            record.handovers.append(HandOver(len(self._generated), source, task.end, self._now(), LATE))

    async def _stream(self, source: GenerationTask) -> GenerationTask | None:
        """STREAM: tokens of one endpoint until the answer is complete (None), the rule moves it, or it fails."""
        while True:
            try:
                token = await source.next
            except EndpointError as failure:
                self._fail(source, failure)
                return self._hand_over(source.end, str(failure))
            if token is not None:
                self._add(token, source.end)
            if token is None or len(self._generated) == self.settings.max_tokens:
                self._stop(source.end)
                return None
            if self._decided(source.end) is Action.HAND_OVER:
                self._stop(source.end)
                return await self._await_target(self._hand_over(source.end, None), source.end)
            source.request()

    def _add(self, token: Token, source: End) -> None:
        record, now = self.record, self._now()
        if record.ttft_s is None:
            record.ttft_s = now
        due_s = self.pace.due_s(self, len(self._generated), source)
        self._generated.append(token)
        record.tokens.append(StreamedToken(token.index, token.text, token.id, source, now, due_s))
        self.news.set()

    def _decided(self, source: End) -> Action:
        """What the rule wants after the last token, as far as it is possible; a refusal is recorded once."""
        rule, target = self.rule, None if self.rule is None else self.rule.target
        if rule is None or target is None or target is source or target in self._failed:
            self._settle_others(source, None)
            return Action.STAY
        decision = rule.decide(self.state(target))
        wanted = decision.action in (Action.HAND_OVER, Action.PREFILL)
        refusal = (self._refusal(target) if wanted else None) or decision.reason
        if refusal and refusal not in self.record.refusals:
            self.record.refusals.append(refusal)
        wanted = wanted and not refusal
        self._settle_others(source, target if wanted else None)
        if not wanted or target in self._failed:
            return Action.STAY
        if decision.action is Action.PREFILL and target not in self._begun:
            self._prefill_only(self._begin(target, prompt_only=True))
        return Action.STAY if self._splits_text(target) else decision.action

    def _settle_others(self, source: End, target: End | None) -> None:
        """Stop a generation beside the source's, or let it finish its prefill if it is the target's."""
        for end, task in list(self._running.items()):
            if end is source:
                continue
            if task.next.done():
                failure = task.next.exception()
                if failure is not None:
                    self._fail(task, failure)
                else:
                    self._stop(end)
            elif end is target:
                self._prefill_only(task)
            else:
                self._stop(end)

    def _prefill_only(self, task: GenerationTask) -> None:
        """Let a generation finish its prefill, and stop it then: that first token is not charged."""
        if not task.prefill_only:
            task.prefill_only = True
            task.next.add_done_callback(partial(self._prefilled, task))

    def _prefilled(self, task: GenerationTask, _: object) -> None:
        if self._running.get(task.end) is not task:
            return
        failure = task.next.exception()
        if failure is not None:
            self._fail(task, failure)
            return
        task.made -= task.next.result() is not None
        self._stop(task.end)

    def _splits_text(self, target: End) -> bool:
        """Whether the target would get text that is cut after white space, which servers strip or repeat."""
        vocabulary, tokens = self.endpoints[target].vocabulary, self.record.tokens
        if not tokens or not tokens[-1].text[-1:].isspace():
            return False
        return not vocabulary or any(
            self.endpoints[end].vocabulary != vocabulary for end in {t.source for t in tokens}
        )

    def state(self, target: End) -> StreamState:
        """What a rule decides on."""
        task, record, now = self._running.get(target), self.record, self._now()
        running_s = self._ran_s[target] + (0.0 if task is None else now - self._started_s[target])
        return StreamState(
            record=record,
            target=target,
            prompt_tokens=self.prompts.of(target)[1],
            now_s=now,
            running=task is not None,
            running_s=running_s,
            prefilled=None if task is None else task.prefilled,
            prefix_cache=self.endpoints[target].prefix_cache,
            awaited=bool(record.handovers) and record.handovers[-1].target is target and task is not None,
            released=max(self.pace.released, min(1, len(record.tokens))),  # the first is due at once
        )

    def _refusal(self, target: End) -> str | None:
        """Why an endpoint cannot continue the answer; None if it can."""
        endpoint = self.endpoints[target]
        if self._generated and not endpoint.continues:
            return f"{endpoint.name} cannot continue an open assistant turn"
        needed = self.prompts.of(target)[1] + self.settings.max_tokens
        if target in self.prompts.unbuilt:
            return self.prompts.unbuilt[target]
        if endpoint.context is not None and needed > endpoint.context:
            return f"{endpoint.name}: prompt and answer need {needed} tokens of context, it has {endpoint.context}"
        return None

    def _hand_over(self, source: End, reason: str | None) -> GenerationTask:
        """HANDOVER: the other endpoint continues exactly where this one stopped."""
        target = self._source = End(1 - source)
        refusal = self._refusal(target)
        self._settle_others(source, None)
        if target in self._failed or refusal:
            if refusal and refusal not in self.record.refusals:
                self.record.refusals.append(refusal)
            raise self._none_can_continue()
        if reason and self._splits_text(target):
            self.prompts.warn(f"{self.endpoints[target].name} continues after white space, which it may repeat")
        self.record.handovers.append(HandOver(len(self._generated), source, target, self._now(), reason))
        return self._begin(target, failover=reason is not None)

    async def _await_target(self, task: GenerationTask, source: End) -> GenerationTask | None:
        """The target; or, if the rule recalls the source meanwhile, whichever endpoint sends a token first."""
        while self.rule is not None and not task.next.done() and self._refusal(source) is None:
            decision = self.rule.decide(self.state(task.end))
            if decision.action is Action.RECALL:
                return await self._race({source: self._now()}, {task.end: task})
            if math.isinf(decision.again_s):
                break
            await self._first_of([task], decision.again_s)
        return task

    def _begin(self, end: End, *, failover: bool = False, prompt_only: bool = False) -> GenerationTask:
        endpoint, record, settings = self.endpoints[end], self.record, self.settings
        generated = () if prompt_only else self._generated_for(end)
        prompt, _ = self.prompts.of(end)
        prefix = Prefix(copy_prompt(prompt), generated, settings.max_tokens - len(generated), settings.seed)
        estimated = self.prompts.is_estimate(end, generated)
        total = self.prompts.prefix_tokens(end, generated)
        self._charge_prefill(end, total, failover=failover)
        record.started[end] |= not generated and not failover
        task = GenerationTask(end, endpoint, prefix, self._generated, settings.stall_s, self._on_reasoning)
        if estimated:
            self._closing.append(asyncio.create_task(self._corrected(end, generated, total, failover)))
        self._running[end], self._started_s[end] = task, self._now()
        self._begun.add(end)
        return task

    def _generated_for(self, end: End) -> tuple[Token, ...]:
        """The generated tokens as an endpoint takes them: ids are valid within one vocabulary only."""
        vocabulary = self.endpoints[end].vocabulary
        return tuple(
            token if vocabulary and self.endpoints[made.source].vocabulary == vocabulary else replace(token, id=None)
            for token, made in zip(self._generated, self.record.tokens, strict=True)
        )

    def _charge_prefill(self, end: End, total: int, *, failover: bool) -> None:
        charged = total
        if self.endpoints[end].prefix_cache:
            charged, self._cached[end] = max(0, total - self._cached[end]), total
        self.record.prefill[end] += charged
        self.record.failover_prefill[end] += charged * failover

    async def _corrected(self, end: End, generated: tuple[Token, ...], estimated: int, failover: bool) -> None:
        """Charge the server's own count in place of an estimate."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.confirm_s):
                exact = await asyncio.to_thread(self.prompts.prefix_tokens, end, generated, ask=True)
                self.record.prefill[end] += exact - estimated
                self.record.failover_prefill[end] += (exact - estimated) * failover

    def _on_reasoning(self, token: Token, end: End) -> None:
        self.record.reasoning[end] += 1
        if self.settings.on_reasoning is not None:
            self.settings.on_reasoning(token.text, end)

    def _fail(self, task: GenerationTask, failure: BaseException) -> None:
        if not isinstance(failure, EndpointError):
            raise failure
        self._failed.add(task.end)
        self.record.failures.append(failure)
        self._stop(task.end)
        if isinstance(failure, FilteredError) and not self.settings.after_filter and self._source in (None, task.end):
            raise self._none_can_continue()

    def _stop(self, end: End) -> None:
        """Cancel in the background: the reader does not wait for that, only the end of the run does."""
        task = self._running.pop(end, None)
        if task is not None:
            self._ran_s[end] += self._now() - self._started_s[end]
            closing = asyncio.create_task(self._confirmed(task))
            closing.add_done_callback(partial(self._charge, task))  # also if the loop is closed and cancels it
            self._closing.append(closing)

    async def _confirmed(self, task: GenerationTask) -> None:
        """Close a generation; raises if the endpoint does not confirm in time that it stopped."""
        async with asyncio.timeout(self.settings.confirm_s):
            await task.close()

    def _charge(self, task: GenerationTask, closing: "asyncio.Task[None]") -> None:
        """Charge the tokens that it generated until it had stopped."""
        self.record.decode[task.end] += task.charged
        self.record.unconfirmed[task.end] += closing.cancelled() or closing.exception() is not None

    def _none_can_continue(self) -> StreamError:
        why = "; ".join(map(str, [*self.record.failures, *self.record.refusals])) or "no endpoint could be started"
        return StreamError(f"neither endpoint could continue after {len(self._generated)} tokens: {why}")

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self.start

    async def _first_of(self, tasks: Collection[GenerationTask], at: float | None) -> None:
        """Wake at the first of these tokens or at a time, after all else that happens at that instant."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()

        def wake(_: object = None) -> None:
            if not woken.done():
                woken.set_result(None)

        timer = None if at is None else loop.call_at(self.start + at, wake)
        waited = [task.next for task in tasks]
        for one in waited:
            one.add_done_callback(wake)
        try:
            await woken
            for _ in range(2):
                await asyncio.sleep(0)
        finally:
            if timer:
                timer.cancel()
            for one in waited:
                one.remove_done_callback(wake)


class _EmptyError(CutError):
    """An endpoint that ended without a token: it has lost the race."""
