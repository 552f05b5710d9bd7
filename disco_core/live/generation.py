"""The generations of a live answer: each is run, requested token by token, timed, stopped and charged."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from disco_core.cost import End
from disco_core.endpoints.base import Generation, Prefix, Token, copy_prompt, wait_stopped
from disco_core.errors import CutError, EndpointError, ProtocolError, StalledError
from disco_core.live.prompts import Prompts, Settings, describe, note
from disco_core.record import Record

MOST_REPEATED = 1000  # tokens sent twice in one generation, after which it is no chunk sent again


class GenerationTask:
    """One generation in a task of its own. `next` is what was requested: a token, None for the end, or a failure.

    The endpoint is asked for a token only when one is requested. If none comes within `stall_s`, `next` is a failure
    at once, even if the endpoint takes long to confirm a cancellation.

    made           tokens it has yielded, reasoning and repeated ones included
    prefill_only   whether it is stopped once it has prefilled
    """

    def __init__(self, end: End, prefix: Prefix, record: Record, settings: Settings) -> None:
        self.end, self.endpoint, self.made, self.prefill_only = end, settings.endpoints[end], 0, False
        self._index, self._record, self._settings = len(prefix.generated), record, settings
        self._generation: Generation | None = None
        self._loop = asyncio.get_running_loop()
        self._alarm: asyncio.TimerHandle | None = None
        self._requested, self._closing = asyncio.Event(), False
        self.request()
        self._task = self._loop.create_task(self._run(prefix))

    def request(self) -> None:
        """Ask for the next token."""
        self.next: asyncio.Future[Token | EndpointError | None] = self._loop.create_future()
        self._requested.set()
        self._patience = self._loop.time() + self._settings.stall_s
        if self._alarm is None:  # one timer for many tokens: it checks the time when it fires
            self._alarm = self._loop.call_at(self._patience, self._on_stall)

    def reported(self, what: str) -> int | None:
        """What the generation reports of itself, such as `prefilled`; None if it cannot, which is no failure."""
        try:
            value = getattr(self._generation, what, None)
            return int(value) if value is not None and value >= 0 else None
        except Exception:  # a user's property
            return None

    async def close(self) -> None:
        """Cancel the generation; raises if the endpoint does not confirm within `confirm_s` that it stopped."""
        self._closing = True
        if self._alarm:
            self._alarm.cancel()
        self.next.cancel()
        self._task.cancel()
        async with asyncio.timeout(self._settings.confirm_s):
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
                self._patience = self._loop.time() + self._settings.stall_s
                self._record.reasoning[self.end] += 1
                try:
                    if self._settings.on_reasoning is not None:
                        self._settings.on_reasoning(token.text, self.end)
                except Exception as error:  # a user's function
                    note(self._record.warnings, f"on_reasoning failed: {describe(error)}")
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
        before = self._record.tokens
        if not 0 <= token.index < min(self._index, len(before)):
            return False
        earlier = before[token.index]
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
        if not self.next.done():
            self.next.set_result(news)

    def _on_stall(self) -> None:
        self._alarm = None
        if self.next.done():
            return
        if self._loop.time() < self._patience:
            self._alarm = self._loop.call_at(self._patience, self._on_stall)
        else:
            self._deliver(StalledError(self.endpoint.name, f"sent no token for {self._settings.stall_s:g} s"))


class Generations:
    """All generations of one answer, and what they are charged.

    start      loop time the request was meant to start; times are seconds since then
    running    by endpoint
    prefixes   tokens of each prefix that an endpoint was sent, and whether only a failure caused that
    """

    def __init__(self, prompts: Prompts) -> None:
        self.prompts, self.record, self.settings, self.start = prompts, prompts.record, prompts.settings, 0.0
        self.running: dict[End, GenerationTask] = {}
        self.prefixes: dict[End, list[tuple[int, bool]]] = {end: [] for end in End}
        self._started_s, self._ran_s = dict.fromkeys(End, 0.0), dict.fromkeys(End, 0.0)
        self._closing: list[asyncio.Task[None]] = []

    def now(self) -> float:
        """Seconds since the request was meant to start."""
        return asyncio.get_running_loop().time() - self.start

    def running_s(self, end: End) -> float:
        """Seconds that an endpoint has been running in total."""
        return self._ran_s[end] + (self.now() - self._started_s[end] if end in self.running else 0.0)

    def begin(self, end: End, *, failover: bool = False, prompt_only: bool = False) -> GenerationTask:
        """Start one, and charge its prefill; `prompt_only`: without the tokens generated so far."""
        prompts, settings = self.prompts, self.settings
        prompt, generated = prompts.of(end)[0], () if prompt_only else prompts.generated_for(end)
        prefix = Prefix(copy_prompt(prompt), generated, settings.max_tokens - len(generated), settings.seed)
        if prompts.endpoints[end].remote:
            self._closing.append(asyncio.create_task(self._correct(end, generated, len(self.prefixes[end]))))
        self.prefixes[end].append((prompts.prefix_tokens(end, generated), failover))
        self._charge_prefill(end)
        self.record.started[end] |= not generated and not failover
        task = GenerationTask(end, prefix, self.record, settings)
        self.running[end], self._started_s[end] = task, self.now()
        return task

    def stop(self, end: End) -> None:
        """Cancel in the background: the reader does not wait for that, only the end of the run does."""
        task = self.running.pop(end, None)
        if task is not None:
            self._ran_s[end] += self.now() - self._started_s[end]
            closing = asyncio.create_task(task.close())
            closing.add_done_callback(partial(self._charge, task))  # also if the loop is closed and cancels it
            self._closing.append(closing)

    async def close(self) -> None:
        """Wait until all have stopped and servers have counted, at most `confirm_s`."""
        if self._closing:
            await asyncio.wait(self._closing)
        self.prompts.close()

    async def wait_for_news(self, at: float | None) -> None:
        """Wake at news of those that run or at a time, after all else that happens at that instant."""
        loop = asyncio.get_running_loop()
        waited: list[asyncio.Future[Any]] = [loop.create_future(), *(task.next for task in self.running.values())]
        timer = None if at is None else loop.call_at(self.start + at, waited[0].cancel)
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            for _ in range(2):
                await asyncio.sleep(0)
        finally:
            if timer:
                timer.cancel()

    def _charge_prefill(self, end: End) -> None:
        """Charge all prefixes that an endpoint was sent; one with a prefix cache prefills what is new in each."""
        record, cached = self.record, 0
        record.prefill[end] = record.failover_prefill[end] = 0
        for tokens, failover in self.prefixes[end]:
            charged = max(0, tokens - cached)
            record.prefill[end] += charged
            record.failover_prefill[end] += charged * failover
            cached = tokens if self.prompts.endpoints[end].prefix_cache else 0

    async def _correct(self, end: End, generated: Sequence[Token], number: int) -> None:
        """Charge a server's own count of the endpoint's prefix of that number in place of an estimate."""
        try:
            async with asyncio.timeout(self.settings.confirm_s):
                tokens = await self.prompts.exact_prefix_tokens(end, generated)
                self.prefixes[end][number] = tokens, self.prefixes[end][number][1]
                self._charge_prefill(end)
        except TimeoutError:
            note(self.record.warnings, f"{self.prompts.endpoints[end].name}: its prefill is charged as estimated")

    def _charge(self, task: GenerationTask, closing: "asyncio.Task[None]") -> None:
        """Charge the tokens that it generated until it had stopped, also those that it did not yield."""
        self.record.decode[task.end] += task.made + (task.reported("undelivered") or 0)
        self.record.unconfirmed[task.end] += closing.cancelled() or closing.exception() is not None
