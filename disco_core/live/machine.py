"""The states of one live answer: race, streaming, hand-over and failover, over two endpoints.

    RACE -> STREAM(source) -> [HANDOVER(source -> target)] -> STREAM(target) -> DONE | FAILED

One counter decides: the tokens generated so far. The endpoint that continues starts exactly there. Times are by the
event loop's clock, in seconds since the request was meant to start.
"""

import asyncio
import math
from functools import partial

from disco_core import checks
from disco_core.cost import End
from disco_core.endpoints.base import Token
from disco_core.errors import CutError, EndpointError, FilteredError, StreamError
from disco_core.live.generation import Generations, GenerationTask
from disco_core.live.prompts import Prompts, Settings, describe, note
from disco_core.migration import STAY, Action, Decision, Rule, StreamState
from disco_core.record import LATE, HandOver, StreamedToken


class Machine:
    """The states, one method each; `record` is their only output, and `news` is set when it has changed.

    released     tokens that the reader has got
    rule_paces   whether the rule says when tokens are due
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.rule, self.prompts = settings, settings.rule, Prompts(settings)
        self.record, self.generations = self.prompts.record, Generations(self.prompts)
        self.news, self.released = asyncio.Event(), 0
        self.rule_paces = type(self.rule).due_s is not Rule.due_s
        self._failed = set[End]()

    async def run(self, start: float) -> None:
        """From the request to DONE, or FAILED with a StreamError; a cancel ends it without an error."""
        self.generations.start, plan = start, self.settings.plan
        try:
            tokens = await self.prompts.tokens(plan.constraint.end if plan.constraint else End.DEVICE)
            delays_s = plan.draw([tokens], self.settings.rng)[:, 0].tolist()
            starts = {end: delay for end, delay in zip(End, delays_s, strict=True) if math.isfinite(delay)}
            source = await self._race(starts)
            while source is not None:
                source = await self._stream(source)
            self.record.complete = True
        except asyncio.CancelledError:
            return  # by the reader; the traceback of a cancelled task would be a reference cycle
        except StreamError as error:
            self.record.error = error
            raise
        finally:
            for end in End:
                self.generations.stop(end)

    def due_s(self, index: int, source: End) -> float:
        """The earliest release of a token: as the rule's `due_s` says, or at the reading rate from the first on."""
        if index and self.rule_paces and self.rule.target is not None:
            try:
                return checks.number(self.rule.due_s(self._state(self.rule.target), index, source), "due_s")
            except Exception as error:  # a user's function
                note(self.record.warnings, f"the rule failed: {describe(error)}")
        return (self.record.ttft_s or 0.0) + index / self.settings.reading_rate

    @property
    def _source(self) -> End | None:
        """The endpoint that the answer comes from, or is to come from; None in the first race."""
        handovers = self.record.handovers
        return handovers[-1].target if handovers else self.record.winner

    async def _race(self, planned: dict[End, float]) -> GenerationTask | None:
        """RACE: each endpoint starts at its planned time unless the other answered before; the first token wins.

        An endpoint that fails, or ends without a token, has lost, and the other one starts at once. None: every
        endpoint ended without a token, so the answer is empty.
        """
        running, starts = self.generations.running, dict(planned)
        while running or starts:
            now = asyncio.get_running_loop().time()  # compared on the loop's scale: a difference of times is rounded
            for end in [end for end in End if self.generations.start + starts.get(end, math.inf) <= now]:
                at = starts.pop(end)  # before the planned time where the other one failed or is late
                self.generations.begin(end, failover=at < planned.get(end, math.inf))
                self._limit_first_token(end, at, starts)
            await self.generations.wait_for_news(min(starts.values(), default=None))
            for _, task in sorted(running.items()):  # the server first: it wins a tie
                if not task.next.done():
                    continue
                news = task.next.result()
                if news is None and not self.record.tokens:
                    news = _EmptyError(task.endpoint.name, "it ended without a token")
                if not isinstance(news, EndpointError):
                    self._won(task.end)
                    return task
                self._fail(task, news)
                starts |= dict.fromkeys(self._idle(), self.generations.now())
        if all(isinstance(one, _EmptyError) for one in self.record.failures) and not self.record.tokens:
            return None
        raise self._none_can_continue()

    def _limit_first_token(self, end: End, at: float, starts: dict[End, float]) -> None:
        """The other endpoint starts once this one is late with its first token, if it was not to start before."""
        limit_s = self.settings.first_token_s
        if limit_s is None or self.record.tokens:
            return
        try:
            limit_s = limit_s(self.prompts.of(end)[1]) if callable(limit_s) else limit_s
            deadline = at + checks.positive(limit_s, "first_token_s")
        except Exception as error:  # a user's function
            note(self.record.warnings, f"no deadline for a first token: {describe(error)}")
            return
        for other in self._idle():
            starts[other] = min(starts.get(other, math.inf), deadline)

    def _idle(self) -> set[End]:
        """Endpoints that could be started."""
        return set(End) - self._failed - self.generations.running.keys()

    def _won(self, end: End) -> None:
        source, record = self._source, self.record
        if source is None:
            record.winner = end
        elif source is not end:  # it was recalled, and faster than the target
            record.handovers.append(HandOver(len(record.tokens), source, end, self.generations.now(), LATE))

    async def _stream(self, source: GenerationTask) -> GenerationTask | None:
        """STREAM: tokens of one endpoint until the answer is complete (None), the rule moves it, or it fails."""
        record = self.record
        while True:
            news = await source.next
            if isinstance(news, EndpointError):
                self._fail(source, news)
                return self._hand_over(source.end, str(news))
            if news is not None:
                now = self.generations.now()
                if record.ttft_s is None:
                    record.ttft_s = now
                due_s = self.due_s(len(record.tokens), source.end)
                record.tokens.append(StreamedToken(news.index, news.text, news.id, source.end, now, due_s))
                self.news.set()
            if news is None or len(record.tokens) == self.settings.max_tokens:
                self.generations.stop(source.end)
                return None
            if self._moves(source):
                self.generations.stop(source.end)
                return await self._await_target(self._hand_over(source.end, None), source.end)
            source.request()

    def _moves(self, task: GenerationTask) -> bool:
        """Whether the rule hands over after the last token, and that is possible; a refusal is recorded once."""
        source, target = task.end, self.rule.target
        if target is None or target is source or target in self._failed or task.reported("ended"):
            self._settle_others(source, None)
            return False
        decision = self._decision(target)
        wanted = decision.action in (Action.HAND_OVER, Action.PREFILL)
        refusal = (self.prompts.refusal(target) if wanted else None) or decision.reason
        note(self.record.refusals, refusal)
        possible = wanted and not refusal
        if possible and decision.action is Action.PREFILL and not self.generations.prefixes[target]:
            self.generations.begin(target, prompt_only=True)
        self._settle_others(source, target if possible else None)
        moves = possible and decision.action is Action.HAND_OVER and target not in self._failed
        if moves and self.prompts.splits_text(target):
            name = self.prompts.endpoints[target].name
            note(self.record.refusals, f"{name} is not handed text that ends in white space, which it may repeat")
            return False
        return moves

    def _decision(self, target: End) -> Decision:
        """The rule's; a rule that fails stays, so that a mistake in it loses no answer."""
        try:
            return checks.instance_of(self.rule.decide(self._state(target)), Decision, "decide's result")
        except Exception as error:  # a user's function
            note(self.record.warnings, f"the rule failed: {describe(error)}")
            return STAY

    def _settle_others(self, source: End, target: End | None) -> None:
        """Stop a generation beside the source's, or let it finish its prefill if it is the target's."""
        for end, task in list(self.generations.running.items()):
            if end is source:
                continue
            if end is not target or task.next.done():
                self._leave(task)
            elif not task.prefill_only:
                task.prefill_only = True
                task.next.add_done_callback(partial(self._leave, task))

    def _leave(self, task: GenerationTask, _: object = None) -> None:
        """Stop a generation beside the source's, unless it is stopped already; it may have failed meanwhile."""
        if self.generations.running.get(task.end) is not task:
            return
        news = task.next.result() if task.next.done() else None
        task.made -= task.prefill_only and isinstance(news, Token)  # one that only tells that the prefill has ended
        if isinstance(news, EndpointError):
            self._fail(task, news)
        else:
            self.generations.stop(task.end)

    def _state(self, target: End) -> StreamState:
        """What a rule decides on."""
        record, generations = self.record, self.generations
        task = generations.running.get(target)
        return StreamState(
            record=record,
            target=target,
            prompt_tokens=self.prompts.of(target)[1],
            now_s=generations.now(),
            running=task is not None,
            running_s=generations.running_s(target),
            prefilled=None if task is None else task.reported("prefilled"),
            prefix_cache=self.prompts.endpoints[target].prefix_cache,
            awaited=bool(record.handovers) and record.handovers[-1].target is target and task is not None,
            released=max(self.released, min(1, len(record.tokens))),  # the first is due at once
        )

    def _hand_over(self, source: End, reason: str | None) -> GenerationTask:
        """HANDOVER: the other endpoint continues exactly where this one stopped."""
        target = End(1 - source)
        refusal = self.prompts.refusal(target)
        self._settle_others(source, None)
        note(self.record.refusals, refusal)
        if refusal or target in self._failed:
            raise self._none_can_continue()
        if reason and self.prompts.splits_text(target):
            name = self.prompts.endpoints[target].name
            note(self.record.warnings, f"{name} continues after white space, which it may repeat")
        self.record.handovers.append(
            HandOver(len(self.record.tokens), source, target, self.generations.now(), reason)
        )
        return self.generations.begin(target, failover=reason is not None)

    async def _await_target(self, task: GenerationTask, source: End) -> GenerationTask | None:
        """The target; or, if the rule recalls the source meanwhile, whichever endpoint sends a token first."""
        while not task.next.done() and self.prompts.refusal(source) is None:
            decision = self._decision(task.end)
            if decision.action is Action.RECALL:
                return await self._race({source: self.generations.now()})
            if math.isinf(decision.again_s):
                break
            await self.generations.wait_for_news(decision.again_s)
        return task

    def _fail(self, task: GenerationTask, failure: EndpointError) -> None:
        self._failed.add(task.end)
        self.record.failures.append(failure)
        self.generations.stop(task.end)
        if isinstance(failure, FilteredError) and not self.settings.after_filter and self._source in (None, task.end):
            raise self._none_can_continue()

    def _none_can_continue(self) -> StreamError:
        why = "; ".join(map(str, [*self.record.failures, *self.record.refusals])) or "no endpoint could be started"
        return StreamError(f"neither endpoint could continue after {len(self.record.tokens)} tokens: {why}")


class _EmptyError(CutError):
    """An endpoint that ended without a token: it has lost the race."""
