"""The states of one live answer: race, streaming, hand-over and failover, over two endpoints.

    RACE -> STREAM(source) -> [HANDOVER(source -> target)] -> STREAM(target) -> DONE | FAILED

One counter decides: the tokens generated so far. The endpoint that continues starts exactly there. Times are by the
event loop's clock, in seconds since the request was meant to start.
"""

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from disco_core.cost import End
from disco_core.endpoints.base import Token
from disco_core.errors import CutError, EndpointError, FilteredError, StreamError
from disco_core.live.generation import Generations, GenerationTask, Settings
from disco_core.live.prompts import Prompts
from disco_core.migration import Action, Rule, StreamState
from disco_core.record import LATE, HandOver, StreamedToken

if TYPE_CHECKING:
    from disco_core.live.stream import Pace


class Machine:
    """The states, one method each; `record` is their only output, and `news` is set when it has changed."""

    def __init__(self, prompts: Prompts, rule: Rule | None, pace: "Pace", settings: Settings) -> None:
        self.prompts, self.rule, self.pace, self.settings = prompts, rule, pace, settings
        self.record, self.news = prompts.record, asyncio.Event()
        self.generations = Generations(prompts, settings)
        self._source: End | None = None  # the endpoint that the answer comes from; None in the first race
        self._failed, self._late = set[End](), set[End]()  # late: started since the other one missed its deadline

    async def run(self, start: float, delays_s: Sequence[float]) -> None:
        """From the request to DONE, or FAILED with a StreamError."""
        self.generations.start = start
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
        await self.generations.close()
        self.prompts.close()

    async def _race(self, starts: dict[End, float], running: dict[End, GenerationTask]) -> GenerationTask | None:
        """RACE: each endpoint starts at its time unless the other answered before; the first token wins.

        An endpoint that fails, or ends without a token, has lost, and the other one starts at once. None: every
        endpoint ended without a token, so the answer is empty.
        """
        while True:
            now = asyncio.get_running_loop().time()  # compared on the loop's scale: a difference of times is rounded
            for end in [end for end in End if self.generations.start + starts.get(end, math.inf) <= now]:
                at = starts.pop(end)
                running[end] = self.generations.begin(end, failover=bool(self._failed) or end in self._late)
                self._add_deadline(end, at, starts, running)
            await self.generations.first_of(running.values(), min(starts.values(), default=None))
            for end, task in sorted(running.items()):  # the server first: it wins a tie
                if not task.next.done():
                    continue
                lost = _lost(task, bool(self.record.tokens))
                if lost is None:
                    self._won(task)
                    return task
                del running[end]
                self._fail(task, lost)
                starts |= {other: self._now() for other in End if other not in self._failed | running.keys()}
            if not running and not starts:
                if not self.record.tokens and all(isinstance(one, _EmptyError) for one in self.record.failures):
                    return None
                raise self._none_can_continue()

    def _add_deadline(
        self, end: End, at: float, starts: dict[End, float], running: dict[End, GenerationTask]
    ) -> None:
        """The other endpoint starts once this one is late with its first token, if it was not to start before."""
        limit_s, other = self.settings.first_token_s, End(1 - end)
        if limit_s is None or self.record.tokens or other in self._failed | running.keys():
            return
        deadline = at + limit_s(self.prompts.of(end)[1])
        if deadline < starts.get(other, math.inf):
            starts[other] = deadline
            self._late.add(other)

    def _won(self, task: GenerationTask) -> None:
        record, self._source = self.record, task.end
        if record.winner is None:
            record.winner = task.end
        if record.handovers and task.end is not record.handovers[-1].target:  # recalled, and faster than the target
            source = record.handovers[-1].target
            record.handovers.append(HandOver(len(record.tokens), source, task.end, self._now(), LATE))

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
            if token is None or len(self.record.tokens) == self.settings.max_tokens:
                self.generations.stop(source.end)
                return None
            if self._decided(source.end) is Action.HAND_OVER:
                self.generations.stop(source.end)
                return await self._await_target(self._hand_over(source.end, None), source.end)
            source.request()

    def _add(self, token: Token, source: End) -> None:
        record, now = self.record, self._now()
        if record.ttft_s is None:
            record.ttft_s = now
        due_s = self.pace.due_s(self, len(record.tokens), source)
        self.generations.generated.append(token)
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
        refusal = (self.prompts.refusal(target, self.settings.max_tokens) if wanted else None) or decision.reason
        if refusal and refusal not in self.record.refusals:
            self.record.refusals.append(refusal)
        wanted = wanted and not refusal
        self._settle_others(source, target if wanted else None)
        if not wanted or target in self._failed:
            return Action.STAY
        if decision.action is Action.PREFILL and target not in self.generations.begun:
            task = self.generations.begin(target, prompt_only=True)
            task.prefill_only(partial(self._prefilled, task))
        return Action.STAY if self.prompts.splits_text(target) else decision.action

    def _settle_others(self, source: End, target: End | None) -> None:
        """Stop a generation beside the source's, or let it finish its prefill if it is the target's."""
        for end, task in list(self.generations.running.items()):
            if end is source:
                continue
            if task.next.done():
                failure = task.next.exception()
                if failure is not None:
                    self._fail(task, failure)
                else:
                    self.generations.stop(end)
            elif end is target:
                task.prefill_only(partial(self._prefilled, task))
            else:
                self.generations.stop(end)

    def _prefilled(self, task: GenerationTask, _: object) -> None:
        if self.generations.running.get(task.end) is not task:
            return
        failure = task.next.exception()
        if failure is not None:
            self._fail(task, failure)
            return
        task.made -= task.next.result() is not None
        self.generations.stop(task.end)

    def state(self, target: End) -> StreamState:
        """What a rule decides on."""
        record, generations = self.record, self.generations
        task = generations.running.get(target)
        return StreamState(
            record=record,
            target=target,
            prompt_tokens=self.prompts.of(target)[1],
            now_s=self._now(),
            running=task is not None,
            running_s=generations.running_s(target),
            prefilled=None if task is None else task.prefilled,
            prefix_cache=self.prompts.endpoints[target].prefix_cache,
            awaited=bool(record.handovers) and record.handovers[-1].target is target and task is not None,
            released=max(self.pace.released, min(1, len(record.tokens))),  # the first is due at once
        )

    def _hand_over(self, source: End, reason: str | None) -> GenerationTask:
        """HANDOVER: the other endpoint continues exactly where this one stopped."""
        target = self._source = End(1 - source)
        refusal = self.prompts.refusal(target, self.settings.max_tokens)
        self._settle_others(source, None)
        if target in self._failed or refusal:
            if refusal and refusal not in self.record.refusals:
                self.record.refusals.append(refusal)
            raise self._none_can_continue()
        if reason and self.prompts.splits_text(target):
            self.prompts.warn(
                f"{self.prompts.endpoints[target].name} continues after white space, which it may repeat"
            )
        self.record.handovers.append(HandOver(len(self.record.tokens), source, target, self._now(), reason))
        return self.generations.begin(target, failover=reason is not None)

    async def _await_target(self, task: GenerationTask, source: End) -> GenerationTask | None:
        """The target; or, if the rule recalls the source meanwhile, whichever endpoint sends a token first."""
        while (
            self.rule is not None
            and not task.next.done()
            and self.prompts.refusal(source, self.settings.max_tokens) is None
        ):
            decision = self.rule.decide(self.state(task.end))
            if decision.action is Action.RECALL:
                return await self._race({source: self._now()}, {task.end: task})
            if math.isinf(decision.again_s):
                break
            await self.generations.first_of([task], decision.again_s)
        return task

    def _fail(self, task: GenerationTask, failure: BaseException) -> None:
        if not isinstance(failure, EndpointError):
            raise failure
        self._failed.add(task.end)
        self.record.failures.append(failure)
        self.generations.stop(task.end)
        if isinstance(failure, FilteredError) and not self.settings.after_filter and self._source in (None, task.end):
            raise self._none_can_continue()

    def _none_can_continue(self) -> StreamError:
        why = "; ".join(map(str, [*self.record.failures, *self.record.refusals])) or "no endpoint could be started"
        return StreamError(f"neither endpoint could continue after {len(self.record.tokens)} tokens: {why}")

    def _now(self) -> float:
        return self.generations.now()


def _lost(task: GenerationTask, begun: bool) -> BaseException | None:
    """Why a generation that has news did not win: it failed, or ended without a token before the answer has begun."""
    failure = task.next.exception()
    if failure is None and task.next.result() is None and not begun:
        return _EmptyError(task.endpoint.name, "it ended without a token")
    return failure


class _EmptyError(CutError):
    """An endpoint that ended without a token: it has lost the race."""
