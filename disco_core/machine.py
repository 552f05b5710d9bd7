"""The states of one live answer: race, streaming, hand-over and failover, over two endpoints.

    RACE -> STREAM(source) -> [HANDOVER(source -> target)] -> STREAM(target) -> DONE | FAILED

One counter rules: the tokens generated so far. Whoever goes on continues exactly there. Times are the event loop's,
in seconds since the request was meant to start.
"""

import asyncio
import math
from dataclasses import replace
from functools import partial

from disco_core.cost import End
from disco_core.endpoints.base import Endpoint, Prefix, Prompt, Token, ahead, until
from disco_core.errors import CutError, EndpointError, ProtocolError, StalledError, StreamError
from disco_core.migration import MigrationRule
from disco_core.record import HandOver, Record, StreamedToken


class _Work:
    """One piece of work of one end. `next` is the token it was asked for, None for the end of the answer.

    The alarm is told to `next` at its time, whatever the endpoint does then: a cancel may take it long to confirm.
    """

    def __init__(self, end: End, endpoint: Endpoint, prefix: Prefix, stall_s: float) -> None:
        self.end, self.endpoint, self.stall_s = end, endpoint, stall_s
        self.index, self.made = len(prefix.generated), 0
        self._tokens = endpoint.generate(prefix)
        self._loop = asyncio.get_running_loop()
        self._alarm: asyncio.TimerHandle | None = None
        self.ask()

    def ask(self) -> None:
        self.next: asyncio.Future[Token | None] = self._loop.create_future()
        self._asking = self._loop.create_task(self._ask())
        self._patience = self._loop.time() + self.stall_s
        if self._alarm is None:  # one for many tokens: it looks at the time when it rings
            self._alarm = self._loop.call_at(self._patience, self._ring)

    async def _ask(self) -> None:
        """The next token, or a failure, always as an EndpointError."""
        name = self.endpoint.name
        try:
            while (token := await anext(self._tokens, None)) is not None:
                self.made += 1
                if token.index > self.index:
                    raise ProtocolError(name, f"sent token {token.index} where {self.index} was next")
                if token.index == self.index:
                    break
                # a token that was here before: a chunk sent twice is dropped
        except Exception as error:
            if self.next.cancelled():  # it broke while it was being closed
                raise
            failure = (
                error if isinstance(error, EndpointError) else CutError(name, f"{type(error).__name__}: {error}")
            )
            failure.__cause__ = error.__cause__ if failure is error else error
            self._tell(failure)
        except asyncio.CancelledError:
            self._tell(CutError(name, "it was cancelled"))
            raise
        else:
            self.index += 1
            self._tell(token)

    def _tell(self, news: Token | Exception | None) -> None:
        if self.next.done():
            return
        if isinstance(news, Exception):
            self.next.set_exception(news)
        else:
            self.next.set_result(news)

    def _ring(self) -> None:
        self._alarm = None
        if not self.next.done():
            if self._loop.time() < self._patience:
                self._alarm = self._loop.call_at(self._patience, self._ring)
            else:
                self._tell(StalledError(self.endpoint.name, f"sent nothing for {self.stall_s:g} s"))

    @property
    def charged(self) -> int:
        """Tokens it made so far, those that are still on their way included."""
        return self.made + ahead(self.endpoint, self._tokens)

    async def close(self) -> None:
        """Cancel what it does; returns once the endpoint has confirmed that it stopped."""
        if self._alarm:
            self._alarm.cancel()
        self.next.cancel()
        self._asking.cancel()
        await asyncio.wait([self._asking])
        await self._tokens.aclose()
        if not self._asking.cancelled():
            self._asking.result()


class Machine:
    """The states, one method each; `record` is their only output."""

    def __init__(
        self,
        prompt: Prompt,
        ends: tuple[Endpoint, Endpoint],
        rule: MigrationRule | None,
        max_tokens: int,
        reading_rate: float,
        stall_s: float,
        confirm_s: float,
        seed: int | None,
    ) -> None:
        self.prompt, self.ends, self.rule = prompt, ends, rule
        self.max_tokens, self.reading_rate, self.seed = max_tokens, reading_rate, seed
        self.stall_s, self.confirm_s = stall_s, confirm_s
        self.record, self.news, self.start = Record(), asyncio.Event(), 0.0
        self.delays: tuple[float, float] = (0.0, 0.0)
        self._built: dict[End, tuple[Prompt, int]] = {}
        self._generated: list[Token] = []
        self._failed: set[End] = set()
        self._works: list[_Work] = []
        self._closing: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """From the request to DONE, or FAILED with a StreamError."""
        try:
            work: _Work | None = await self._race()
            while work is not None:
                work = await self._stream(work)
            self.record.complete = True
        except StreamError as error:
            self.record.error = error
            raise
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop whatever still runs, and wait until it has, for each at most `confirm_s`."""
        for work in list(self._works):
            self._stop(work)
        if self._closing:
            await asyncio.wait(self._closing)

    async def _race(self) -> _Work:
        """RACE: each end starts at its delay unless the other answered before; the first token wins."""
        running: dict[End, _Work] = {}
        starts = {end: delay for end, delay in zip(End, self.delays, strict=True) if math.isfinite(delay)}
        while True:
            for end in [end for end in End if starts.get(end, math.inf) <= self._now()]:
                del starts[end]
                running[end] = self._begin(end)
            at = min(starts.values(), default=None)
            await self._first_of([work.next for work in running.values()], at)
            for end, work in sorted(running.items()):  # the server first: a tie is its
                if not work.next.done():
                    continue
                failure = work.next.exception()
                if failure is None:
                    self._lose([other for other in running.values() if other is not work])
                    self.record.winner = end
                    return work
                del running[end]
                self._fail(work, failure)
                starts = {
                    other: self._now() for other in (End(1 - end),) if other not in self._failed | running.keys()
                }
            if not running and not starts:
                raise self._both_failed()

    async def _stream(self, work: _Work) -> _Work | None:
        """STREAM: tokens of one end until the answer is complete (None), the rule moves it, or the end fails."""
        while True:
            try:
                token = await work.next
            except EndpointError as failure:
                self._fail(work, failure)
                return self._hand_over(work, str(failure))
            if token is None:
                self._stop(work)
                return None
            self._add(token, work.end)
            if len(self._generated) == self.max_tokens:
                self._stop(work)
                return None
            if self._moves(work.end):
                self._stop(work)
                return self._hand_over(work, None)
            work.ask()

    def _add(self, token: Token, source: End) -> None:
        now, record = self._now(), self.record
        if record.ttft_s is None:
            record.ttft_s = now
        due = record.ttft_s + len(self._generated) / self.reading_rate
        self._generated.append(token)
        record.tokens.append(StreamedToken(token.index, token.text, token.id, source, now, max(now, due)))
        self.news.set()

    def _moves(self, source: End) -> bool:
        """Whether the rule hands over now; a refusal is recorded once for each reason."""
        rule, record = self.rule, self.record
        target = None if rule is None else rule.target
        if rule is None or target is None or target is source or record.migrated_at or target in self._failed:
            return False
        prompt_tokens, generated = self.prompt_of(target)[1], len(self._generated)
        if not bool(rule.moves(prompt_tokens, generated, self._now() - (record.ttft_s or 0.0))):
            return False
        refusal = self._refusal(target)
        if refusal and refusal not in record.refusals:
            record.refusals.append(refusal)
        return refusal is None

    def prompt_of(self, end: End) -> tuple[Prompt, int]:
        """The prompt as the rule builds it for an end, and how many tokens that end counts in it: asked for once."""
        if end not in self._built:
            prompt = self.prompt if self.rule is None else self.rule.prompt_for(end, self.prompt)
            self._built[end] = prompt, self.ends[end].count(prompt)
        return self._built[end]

    def _refusal(self, target: End) -> str | None:
        end, n = self.ends[target], len(self._generated)
        if n and not end.continues:
            return f"{end.name} cannot continue an open assistant turn"
        whole = self.prompt_of(target)[1] + self.max_tokens
        if end.context is not None and whole > end.context:
            return f"{end.name}: prompt and answer need {whole} tokens of context, it has {end.context}"
        return None

    def _hand_over(self, source: _Work, reason: str | None) -> _Work:
        """HANDOVER: the other end continues exactly where this one stopped."""
        target = End(1 - source.end)
        refusal = self._refusal(target)
        if target in self._failed or refusal:
            if refusal:
                self.record.refusals.append(refusal)
            raise self._both_failed()
        for kept in [work for work in self._works if work.end is target]:
            self._prefilled(kept)
        self.record.handovers.append(HandOver(len(self._generated), source.end, target, self._now(), reason))
        return self._begin(target, failover=reason is not None)

    def _begin(self, end: End, *, failover: bool = False) -> _Work:
        endpoint, record = self.ends[end], self.record
        generated = tuple(
            # ids mean something to ends of one vocabulary only; the others read the text again
            token if self.ends[made.source].vocabulary == endpoint.vocabulary else replace(token, id=None)
            for token, made in zip(self._generated, record.tokens, strict=True)
        )
        prompt, charged = self.prompt_of(end)
        prefix = Prefix(prompt, generated, self.max_tokens - len(generated), self.seed)
        charged += self._read_again(endpoint, generated)
        record.prefill[end] += charged
        record.failover_prefill[end] += charged * failover
        record.started[end] |= not generated
        work = _Work(end, endpoint, prefix, self.stall_s)
        self._works.append(work)
        return work

    @staticmethod
    def _read_again(endpoint: Endpoint, generated: tuple[Token, ...]) -> int:
        """Tokens that an end has to read for what is there already, in its own count where it gets text."""
        if all(token.id is not None for token in generated):
            return len(generated)
        return endpoint.count("".join(token.text for token in generated))

    def _fail(self, work: _Work, failure: BaseException) -> None:
        if not isinstance(failure, EndpointError):
            raise failure
        self._failed.add(work.end)
        self.record.failures.append(failure)
        self._stop(work)

    def _lose(self, losers: list[_Work]) -> None:
        for work in losers:
            if not work.next.done() and self.rule is not None and self.rule.keeps_loser:
                work.next.add_done_callback(partial(self._prefilled, work))
            else:
                self._prefilled(work)

    def _prefilled(self, work: _Work, _: object = None) -> None:
        """The loser's end: a token of the winner's own instant, or one that ends a kept prefill, is not charged."""
        if work not in self._works:
            return
        if work.next.done() and not work.next.cancelled():
            failure = work.next.exception()
            if failure is not None:
                self._fail(work, failure)
                return
            work.made -= work.next.result() is not None
        self._stop(work)

    def _stop(self, work: _Work) -> None:
        """Cancel in the background: the reader does not wait for it, the end of the run does."""
        if work in self._works:
            self._works.remove(work)
            self._closing.append(asyncio.create_task(self._confirmed(work)))

    async def _confirmed(self, work: _Work) -> None:
        """The end of a piece of work, and its charge: what it made until it had really stopped."""
        closing = asyncio.create_task(work.close())
        try:
            await asyncio.wait([closing], timeout=self.confirm_s)
        finally:
            self.record.decode[work.end] += work.charged
            if not closing.done() or closing.cancelled() or closing.exception():
                closing.cancel()
                self.record.unconfirmed[work.end] += 1

    def _both_failed(self) -> StreamError:
        why = "; ".join(map(str, [*self.record.failures, *self.record.refusals])) or "no end could be started"
        return StreamError(f"neither end could go on after {len(self._generated)} tokens: {why}")

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self.start

    async def _first_of(self, awaited: list[asyncio.Future[Token | None]], at: float | None) -> None:
        """Wake at the first of some tokens or at a time, with all that happened at that instant seen."""
        loop = asyncio.get_running_loop()
        timer = None if at is None else loop.create_task(until(self.start + at))
        try:
            events: list[asyncio.Future[Token | None] | asyncio.Task[None]] = [*awaited]
            await asyncio.wait(events + ([timer] if timer else []), return_when=asyncio.FIRST_COMPLETED)
            for _ in range(2):
                await asyncio.sleep(0)
        finally:
            if timer:
                timer.cancel()
