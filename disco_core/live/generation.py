"""One generation of one endpoint in a live answer: run, requested token by token, timed, stopped and charged."""

import asyncio
from collections.abc import Callable, Sequence

from disco_core.cost import End
from disco_core.endpoints.base import Endpoint, Generation, Prefix, Token, wait_stopped
from disco_core.errors import CutError, EndpointError, ProtocolError, StalledError
from disco_core.live.prompts import describe

MOST_REPEATED = 1000  # tokens sent twice in one generation, after which it is no chunk sent again


class GenerationTask:
    """One generation in a task of its own. `next` is the token that was requested, None for the end of the answer.

    The endpoint is asked for a token only when one is requested. If none comes within `stall_s`, `next` fails at
    once, even if the endpoint takes long to confirm a cancellation.

    made           tokens it has yielded, reasoning and repeated ones included
    prefill_only   whether it is to stop at its first token, which is not charged then
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
        self.made, self.prefill_only = 0, False
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
            if self._closing:
                raise  # it was cancelled, or failed while it was
            self._deliver(self._failure(error))
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
