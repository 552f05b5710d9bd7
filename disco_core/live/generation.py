"""The generations of a live answer: each is run, requested token by token, timed, stopped and charged."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from disco_core.cost import End
from disco_core.endpoints.base import Endpoint, Generation, Prefix, Token, copy_prompt, wait_stopped
from disco_core.errors import CutError, EndpointError, ProtocolError, StalledError
from disco_core.live.prompts import Prompts, describe

MOST_REPEATED = 1000  # tokens sent twice in one generation, after which it is no chunk sent again


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


class GenerationTask:
    """One generation in a task of its own. `next` is the token that was requested, None for the end of the answer.

    The endpoint is asked for a token only when one is requested. If none comes within `stall_s`, `next` fails at
    once, even if the endpoint takes long to confirm a cancellation.

    made   tokens it has yielded, reasoning and repeated ones included
    """

    def __init__(
        self,
        end: End,
        endpoint: Endpoint,
        prefix: Prefix,
        before: Sequence[Token],
        stall_s: float,
        on_reasoning: Callable[[Token, End], None],
    ) -> None:
        self.end, self.endpoint, self.stall_s = end, endpoint, stall_s
        self.made, self._prefill_only = 0, False
        self._index, self._before, self._on_reasoning = len(prefix.generated), before, on_reasoning
        self._generation: Generation | None = None
        self._loop = asyncio.get_running_loop()
        self._alarm: asyncio.TimerHandle | None = None
        self._requested, self._closing = asyncio.Event(), False
        self.request()
        self._task = self._loop.create_task(self._run(prefix))

    def request(self) -> None:
        """Ask for the next token."""
        self.next: asyncio.Future[Token | None] = self._loop.create_future()
        self._requested.set()
        self._patience = self._loop.time() + self.stall_s
        if self._alarm is None:  # one timer for many tokens: it checks the time when it fires
            self._alarm = self._loop.call_at(self._patience, self._on_stall)

    def prefill_only(self, prefilled: Callable[[object], None]) -> None:
        """Call this once the prefill has ended; the first call counts."""
        if not self._prefill_only:
            self._prefill_only = True
            self.next.add_done_callback(prefilled)

    @property
    def charged(self) -> int:
        """Tokens generated so far, also those that were not delivered."""
        return self.made + (self._reported("undelivered") or 0)

    @property
    def prefilled(self) -> int | None:
        """Tokens of the prefix that the endpoint has prefilled; None where unknown."""
        return self._reported("prefilled")

    async def close(self) -> None:
        """Cancel the generation; returns once the endpoint has confirmed that it stopped."""
        self._closing = True
        if self._alarm:
            self._alarm.cancel()
        self.next.cancel()
        self._task.cancel()
        await wait_stopped(self._task)

    async def _run(self, prefix: Prefix) -> None:
        try:
            self._generation = generation = self._begun(prefix)
            while not self._closing:
                await self._requested.wait()
                self._requested.clear()
                self._deliver(await self._following(generation))
        except StopAsyncIteration:
            self._deliver(None)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if not self._closing:
                self._deliver(self._failure(error))
            elif not isinstance(error, asyncio.CancelledError):
                raise  # it failed while it was cancelled; a cancel ends here, since its traceback would be a cycle
        finally:
            if self._generation is not None:
                await self._generation.aclose()

    def _begun(self, prefix: Prefix) -> Generation:
        generation = self.endpoint.generate(prefix)
        if not (hasattr(generation, "__anext__") and hasattr(generation, "aclose")):
            if asyncio.iscoroutine(generation):
                generation.close()
            kind = type(generation).__name__
            raise CutError(self.endpoint.name, f"generate must give a Generation of tokens, got a {kind}")
        return generation

    async def _following(self, generation: Generation) -> Token:
        """The next token of the answer; reasoning is passed on, and a chunk that was sent twice is dropped."""
        repeated = 0
        while True:
            token = await anext(generation)
            if not (isinstance(token, Token) and isinstance(token.index, int) and isinstance(token.text, str)):
                what = f"sent {token!r:.60}, which is no Token with an index and a text"
                raise ProtocolError(self.endpoint.name, what)
            self.made += 1
            if token.reasoning:
                self._patience = self._loop.time() + self.stall_s
                self._on_reasoning(token, self.end)
                continue
            token.text.encode()  # raises for half a character
            if token.index == self._index:
                self._index += 1
                return token
            if not self._is_repeated(token) or repeated == MOST_REPEATED:
                raise ProtocolError(self.endpoint.name, f"sent token {token.index} where {self._index} was next")
            repeated += 1
            await asyncio.sleep(0)  # an endpoint that never waits must not hold up the loop

    def _is_repeated(self, token: Token) -> bool:
        if not 0 <= token.index < min(self._index, len(self._before)):
            return False
        earlier = self._before[token.index]
        return token.text == earlier.text and (token.id == earlier.id or None in (token.id, earlier.id))

    def _failure(self, error: BaseException) -> EndpointError:
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:  # out of a TaskGroup
            error = error.exceptions[0]
        if isinstance(error, EndpointError):
            return error
        cancelled = isinstance(error, asyncio.CancelledError)
        failure = CutError(self.endpoint.name, "it was cancelled" if cancelled else describe(error))
        failure.__cause__ = error
        return failure

    def _deliver(self, news: Token | EndpointError | None) -> None:
        if self.next.done():
            return
        if isinstance(news, EndpointError):
            self.next.set_exception(news)
        else:
            self.next.set_result(news)

    def _on_stall(self) -> None:
        self._alarm = None
        if self.next.done():
            return
        if self._loop.time() < self._patience:
            self._alarm = self._loop.call_at(self._patience, self._on_stall)
        else:
            self._deliver(StalledError(self.endpoint.name, f"sent no token for {self.stall_s:g} s"))

    def _reported(self, what: str) -> int | None:
        """What the generation reports of itself; None if it cannot, which is no reason to end the answer."""
        try:
            value = getattr(self._generation, what, None)
            return int(value) if value is not None and value >= 0 else None
        except Exception:  # a user's property
            return None


class Generations:
    """All generations of one answer, and what they are charged.

    start       loop time the request was meant to start; times are seconds since then
    generated   the answer so far, with ids as its endpoints gave them
    running     by endpoint
    begun       endpoints that were started at all
    """

    def __init__(self, prompts: Prompts, settings: Settings) -> None:
        self.prompts, self.record, self.settings, self.start = prompts, prompts.record, settings, 0.0
        self.generated: list[Token] = []
        self.running, self.begun = dict[End, GenerationTask](), set[End]()
        self._started_s, self._ran_s = dict.fromkeys(End, 0.0), dict.fromkeys(End, 0.0)
        self._cached = dict.fromkeys(End, 0)  # prefix tokens sent so far to an endpoint with a prefix cache
        self._closing: list[asyncio.Task[None]] = []

    def now(self) -> float:
        """Seconds since the request was meant to start."""
        return asyncio.get_running_loop().time() - self.start

    def running_s(self, end: End) -> float:
        """Seconds that an endpoint has been running in total."""
        return self._ran_s[end] + (self.now() - self._started_s[end] if end in self.running else 0.0)

    def begin(self, end: End, *, failover: bool = False, prompt_only: bool = False) -> GenerationTask:
        """Start one, and charge its prefill; `prompt_only`: without the tokens generated so far."""
        endpoint, record, settings = self.prompts.endpoints[end], self.record, self.settings
        generated = () if prompt_only else self.prompts.generated_for(end, self.generated)
        prompt, _ = self.prompts.of(end)
        prefix = Prefix(copy_prompt(prompt), generated, settings.max_tokens - len(generated), settings.seed)
        estimated = self.prompts.is_estimate(end, generated)
        total = self.prompts.prefix_tokens(end, generated)
        self._charge_prefill(end, total, failover=failover)
        record.started[end] |= not generated and not failover
        task = GenerationTask(end, endpoint, prefix, self.generated, settings.stall_s, self._on_reasoning)
        if estimated:
            self._closing.append(asyncio.create_task(self._corrected(end, generated, total, failover)))
        self.running[end], self._started_s[end] = task, self.now()
        self.begun.add(end)
        return task

    def stop(self, end: End) -> None:
        """Cancel in the background: the reader does not wait for that, only the end of the run does."""
        task = self.running.pop(end, None)
        if task is not None:
            self._ran_s[end] += self.now() - self._started_s[end]
            closing = asyncio.create_task(self._confirmed(task))
            closing.add_done_callback(partial(self._charge, task))  # also if the loop is closed and cancels it
            self._closing.append(closing)

    async def close(self) -> None:
        """Stop all, and wait for each until it has stopped, at most `confirm_s`."""
        for end in list(self.running):
            self.stop(end)
        if self._closing:
            await asyncio.wait(self._closing)

    async def first_of(self, tasks: Collection[GenerationTask], at: float | None) -> None:
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

    def _charge_prefill(self, end: End, total: int, *, failover: bool) -> None:
        charged = total
        if self.prompts.endpoints[end].prefix_cache:
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

    async def _confirmed(self, task: GenerationTask) -> None:
        """Close a generation; raises if the endpoint does not confirm in time that it stopped."""
        async with asyncio.timeout(self.settings.confirm_s):
            await task.close()

    def _charge(self, task: GenerationTask, closing: "asyncio.Task[None]") -> None:
        """Charge the tokens that it generated until it had stopped."""
        self.record.decode[task.end] += task.charged
        self.record.unconfirmed[task.end] += closing.cancelled() or closing.exception() is not None
