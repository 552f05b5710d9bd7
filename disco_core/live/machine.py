"""The states of one live answer: race, streaming, hand-over and failover, over two endpoints.

    RACE -> STREAM(source) -> [HANDOVER(source -> target)] -> STREAM(target) -> DONE | FAILED

One counter decides: the tokens generated so far. The endpoint that continues starts exactly there. Times are by the
event loop's clock, in seconds since the request was meant to start.
"""

import asyncio
import math
import warnings
from dataclasses import replace
from functools import partial

from disco_core.cost import End
from disco_core.endpoints.base import (
    Endpoint,
    Prefix,
    Prompt,
    Token,
    apply_chat_template,
    checked_prompt,
    copy_prompt,
    estimate,
    non_negative_int,
    sleep_until,
)
from disco_core.errors import EndpointError, StreamError
from disco_core.live.work import Work
from disco_core.migration import Rule, StreamState
from disco_core.record import LATE, HandOver, Record, StreamedToken


class Machine:
    """The states, one method each; `record` is their only output."""

    def __init__(
        self,
        prompt: Prompt,
        ends: tuple[Endpoint, Endpoint],
        rule: Rule | None,
        max_tokens: int,
        reading_rate: float,
        stall_s: float,
        confirm_s: float,
        seed: int | None,
        wait: bool,
    ) -> None:
        self.prompt, self.ends, self.rule = prompt, ends, rule
        self.max_tokens, self.reading_rate, self.seed = max_tokens, reading_rate, seed
        self.stall_s, self.confirm_s = stall_s, confirm_s
        self.record, self.news, self.start = Record(), asyncio.Event(), 0.0
        self.wait, self.released = wait, 0
        self._counts, self._unbuilt = dict[End, int](), dict[End, str]()
        self.delays: tuple[float, float] = (0.0, 0.0)
        self._built: dict[End, tuple[Prompt, int]] = {}
        self._asked = [0, 0]  # prefix tokens sent so far to an endpoint with a prefix cache
        self._began_s, self._worked_s = [0.0, 0.0], [0.0, 0.0]  # by endpoint: last start, running time before that
        self._generated: list[Token] = []
        self._failed: set[End] = set()
        self._works: list[Work] = []
        self._closing: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """From the request to DONE, or FAILED with a StreamError."""
        try:
            starts = {end: delay for end, delay in zip(End, self.delays, strict=True) if math.isfinite(delay)}
            work: Work | None = await self._race(starts, {})
            while work is not None:
                work = await self._stream(work)
            self.record.complete = True
        except StreamError as error:
            self.record.error = error
            raise
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop what still runs, and wait for each until it has stopped, at most `confirm_s`."""
        for work in list(self._works):
            self._stop(work)
        if self._closing:
            await asyncio.wait(self._closing)

    async def _race(self, starts: dict[End, float], running: dict[End, Work]) -> Work:
        """RACE: each endpoint starts at its time unless the other answered before; the first token wins."""
        while True:
            now = asyncio.get_running_loop().time()  # compared on the loop's scale: a difference of times is rounded
            for end in [end for end in End if self.start + starts.get(end, math.inf) <= now]:
                del starts[end]
                running[end] = self._begin(end, failover=bool(self._failed))
            at = min(starts.values(), default=None)
            await self._first_of([work.next for work in running.values()], at)
            for end, work in sorted(running.items()):  # the server first: it wins a tie
                if not work.next.done():
                    continue
                failure = work.next.exception()
                if failure is None:
                    self._lose([other for other in running.values() if other is not work])
                    self._won(end)
                    return work
                del running[end]
                self._fail(work, failure)
                starts = {
                    other: self._now() for other in (End(1 - end),) if other not in self._failed | running.keys()
                }
            if not running and not starts:
                raise self._both_failed()

    def _won(self, end: End) -> None:
        record, rule = self.record, self.rule
        if record.winner is None:
            record.winner = end
        if record.handovers and end is not record.handovers[-1].target:  # recalled, and faster than the target
            at, source = len(self._generated), record.handovers[-1].target
            record.handovers.append(HandOver(at, source, end, self._now(), LATE))
        idle = {End.SERVER, End.DEVICE} - {work.end for work in self._works} - self._failed
        if rule is not None and rule.prepares and rule.target in idle and self.max_tokens > 1:
            refusal = self._refusal(rule.target, 1)
            if refusal is None:
                self._keep(self._begin(rule.target))
            else:
                record.refusals.append(refusal)

    async def _stream(self, work: Work) -> Work | None:
        """STREAM: tokens of one endpoint until the answer is complete (None), the rule moves it, or it fails."""
        while True:
            try:
                token = await work.next
            except EndpointError as failure:
                self._fail(work, failure)
                return await self._hand_over(work, str(failure))
            if token is None:
                self._stop(work)
                return None
            self._add(token, work.end)
            if len(self._generated) == self.max_tokens:
                self._stop(work)
                return None
            if self._moves(work.end):
                self._stop(work)
                return await self._hand_over(work, None)
            work.ask()

    def _add(self, token: Token, source: End) -> None:
        now, record = self._now(), self.record
        if record.ttft_s is None:
            record.ttft_s = now
        due = self._due(len(self._generated), source)
        self._generated.append(token)
        record.tokens.append(StreamedToken(token.index, token.text, token.id, source, now, due))
        self.news.set()

    def _due(self, index: int, source: End) -> float:
        rule = self.rule
        if rule is not None and rule.paces and rule.target is not None and index:
            return rule.due_s(self._seen(rule.target), index, source)
        return (self.record.ttft_s or 0.0) + index / self.reading_rate

    def due(self, index: int) -> StreamedToken:
        """The token to be released next, with its release time as known now."""
        token = self.record.tokens[index]
        if self.rule is not None and self.rule.paces:
            self.record.tokens[index] = token = replace(token, due_s=self._due(index, token.source))
        return token

    def _seen(self, target: End) -> StreamState:
        now, work = self._now(), next((work for work in self._works if work.end is target), None)
        reading_s = self._worked_s[target] + (0.0 if work is None else now - self._began_s[target])
        released = max(self.released, min(1, len(self.record.tokens)))  # the first is due at once
        read = None if work is None else work.read
        return StreamState(self.record, self.prompt_of(target)[1], now, work is not None, reading_s, read, released)

    def _moves(self, source: End) -> bool:
        """Whether the rule hands over now; a refusal is recorded once for each reason."""
        rule, record = self.rule, self.record
        target = None if rule is None else rule.target
        if rule is None or target is None or target is source or target in self._failed:
            return False
        if not rule.moves_now(self._seen(target)):
            return False
        refusal = self._refusal(target)
        if refusal is None and rule.reads_on and not getattr(self.ends[target], "reuses", False):
            refusal = f"{self.ends[target].name} does not reuse its prefix cache"
        if refusal and refusal not in record.refusals:
            record.refusals.append(refusal)
        return refusal is None

    def prompt_of(self, end: End) -> tuple[Prompt, int]:
        """The prompt for an endpoint, by rule and chat template, and its tokens by that endpoint's count; cached.

        If that fails it is the prompt as given, and the answer is not handed over to the endpoint.
        """
        if end not in self._built:
            prompt = self.prompt
            try:
                wanted = (
                    prompt if self.rule is None else checked_prompt(self.rule.prompt_for(end, copy_prompt(prompt)))
                )
                prompt = apply_chat_template(self.ends[end], wanted)
            except Exception as error:  # a user's function: the answer goes on without it
                self._unbuilt[end] = (
                    f"no prompt could be made for {self.ends[end].name}: {type(error).__name__}: {error}"
                )
            self._built[end] = prompt, self.count(end) if prompt == self.prompt else self._counted(end, prompt)
        return self._built[end]

    def count(self, end: End) -> int:
        """Tokens of the prompt as given, by an endpoint's own count."""
        if end not in self._counts:
            self._counts[end] = self._counted(end, self.prompt)
        return self._counts[end]

    def _counted(self, end: End, prompt: Prompt) -> int:
        """Tokens by an endpoint's own count; an estimate if that fails, which is no reason to end the answer."""
        endpoint = self.ends[end]
        try:
            return non_negative_int(endpoint.count(prompt), f"{endpoint.name}: count")
        except Exception as error:  # a user's function
            warnings.warn(f"{endpoint.name} cannot count tokens: {type(error).__name__}: {error}", stacklevel=2)
            return estimate(prompt)

    def _refusal(self, target: End, at_least: int = 0) -> str | None:
        """Why an endpoint cannot continue the answer; None if it can. `at_least`: tokens the answer will have."""
        end, n = self.ends[target], max(at_least, len(self._generated))
        if n and not end.continues:
            return f"{end.name} cannot continue an open assistant turn"
        needed = self.prompt_of(target)[1] + self.max_tokens
        if target in self._unbuilt:
            return self._unbuilt[target]
        if end.context is not None and needed > end.context:
            return f"{end.name}: prompt and answer need {needed} tokens of context, it has {end.context}"
        return None

    async def _hand_over(self, source: Work, reason: str | None) -> Work:
        """HANDOVER: the other endpoint continues exactly where this one stopped."""
        target = End(1 - source.end)
        refusal = self._refusal(target)
        for kept in [work for work in self._works if work.end is target]:
            self._prefilled(kept)
        if target in self._failed or refusal:
            if refusal:
                self.record.refusals.append(refusal)
            raise self._both_failed()
        self.record.handovers.append(HandOver(len(self._generated), source.end, target, self._now(), reason))
        work = self._begin(target, failover=reason is not None)
        return work if reason else await self._awaited(work, source.end)

    async def _awaited(self, work: Work, source: End) -> Work:
        """The target; or, if the rule recalls the source meanwhile, whichever endpoint sends a token first."""
        while self.rule is not None and not work.next.done() and self._refusal(source) is None:
            at = self.rule.ask_again_s(self._seen(work.end))
            if at <= self._now():
                return await self._race({source: at}, {work.end: work})
            if math.isinf(at):
                break
            await self._first_of([work.next], at)
        return work

    def _begin(self, end: End, *, failover: bool = False) -> Work:
        endpoint, record = self.ends[end], self.record
        generated = tuple(
            # ids are valid within one vocabulary only; endpoints of another one get the text
            token if self.ends[made.source].vocabulary == endpoint.vocabulary else replace(token, id=None)
            for token, made in zip(self._generated, record.tokens, strict=True)
        )
        prompt, charged = self.prompt_of(end)
        prefix = Prefix(copy_prompt(prompt), generated, self.max_tokens - len(generated), self.seed)
        charged += self._read_again(end, prompt, generated)
        if getattr(endpoint, "reuses", False):
            charged, self._asked[end] = max(0, charged - self._asked[end]), charged
        record.prefill[end] += charged
        record.failover_prefill[end] += charged * failover
        record.started[end] |= not generated and not failover
        work = Work(end, endpoint, prefix, self.stall_s)
        self._began_s[end] = self._now()
        self._works.append(work)
        return work

    def _read_again(self, end: End, prompt: Prompt, generated: tuple[Token, ...]) -> int:
        """Tokens an endpoint has to prefill for the generated ones, by its own count if it gets them as text."""
        if all(token.id is not None for token in generated):
            return len(generated)
        before = prompt if isinstance(prompt, str) else ""  # tokenised as one text, with one BOS
        text = "".join(token.text for token in generated)
        return max(0, self._counted(end, before + text) - self._counted(end, before))

    def _fail(self, work: Work, failure: BaseException) -> None:
        if not isinstance(failure, EndpointError):
            raise failure
        self._failed.add(work.end)
        self.record.failures.append(failure)
        self._stop(work)

    def _lose(self, losers: list[Work]) -> None:
        for work in losers:
            rule = self.rule
            if not work.next.done() and rule is not None and rule.keeps_loser and rule.target in (None, work.end):
                self._keep(work)
            else:
                self._prefilled(work)

    def _keep(self, work: Work) -> None:
        """Let a generation finish its prefill, and stop it then."""
        work.next.add_done_callback(partial(self._prefilled, work))

    def _prefilled(self, work: Work, _: object = None) -> None:
        """Stop a loser; a token of the winner's instant, or one that only ended prefill, is not charged."""
        if work not in self._works:
            return
        if work.next.done() and not work.next.cancelled():
            failure = work.next.exception()
            if failure is not None:
                self._fail(work, failure)
                return
            work.made -= work.next.result() is not None
        self._stop(work)

    def _stop(self, work: Work) -> None:
        """Cancel in the background: the reader does not wait for that, only the end of the run does."""
        if work in self._works:
            self._works.remove(work)
            self._worked_s[work.end] += self._now() - self._began_s[work.end]
            closing = asyncio.create_task(self._confirmed(work))
            closing.add_done_callback(partial(self._charge, work))  # also if the loop is closed and cancels it
            self._closing.append(closing)

    async def _confirmed(self, work: Work) -> None:
        """Close a generation; raises if the endpoint does not confirm in time that it stopped."""
        async with asyncio.timeout(self.confirm_s):
            await work.close()

    def _charge(self, work: Work, closing: "asyncio.Task[None]") -> None:
        """Charge the tokens that it generated until it had stopped."""
        self.record.decode[work.end] += work.charged
        self.record.unconfirmed[work.end] += closing.cancelled() or closing.exception() is not None

    def _both_failed(self) -> StreamError:
        why = "; ".join(map(str, [*self.record.failures, *self.record.refusals])) or "no endpoint could be started"
        return StreamError(f"neither endpoint could continue after {len(self._generated)} tokens: {why}")

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self.start

    async def _first_of(self, awaited: list[asyncio.Future[Token | None]], at: float | None) -> None:
        """Wake at the first of these tokens or at a time, after all else that happens at that instant."""
        loop = asyncio.get_running_loop()
        timer = None if at is None else loop.create_task(sleep_until(self.start + at))
        try:
            events: list[asyncio.Future[Token | None] | asyncio.Task[None]] = [*awaited]
            await asyncio.wait(events + ([timer] if timer else []), return_when=asyncio.FIRST_COMPLETED)
            for _ in range(2):
                await asyncio.sleep(0)
        finally:
            if timer:
                timer.cancel()
