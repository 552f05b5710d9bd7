"""One generation of one endpoint in a live answer: requested token by token, timed, and stopped."""

import asyncio
import warnings
from collections.abc import AsyncGenerator

from disco_core.cost import End
from disco_core.endpoints.base import Endpoint, Prefix, Token, non_negative_int, wait_stopped
from disco_core.errors import CutError, EndpointError, ProtocolError, StalledError

News = Token | EndpointError | None  # the next token, a failure, or None for the end of the answer


class Work:
    """One generation of one endpoint. `next` is the token that was requested, None for the end of the answer.

    One task runs the endpoint's generator from its beginning to its close, so that the generator may hold over a
    `yield` what belongs to a task. On a stall `next` fails at once, even if the endpoint takes long to confirm a
    cancellation.
    """

    def __init__(self, end: End, endpoint: Endpoint, prefix: Prefix, stall_s: float) -> None:
        self.end, self.endpoint, self.stall_s = end, endpoint, stall_s
        self.index, self.made = len(prefix.generated), 0
        self._tokens: AsyncGenerator[Token, None] | None = None
        self._refused: BaseException | None = None
        try:
            self._tokens = _generator(endpoint, prefix)
        except (Exception, asyncio.CancelledError) as error:  # `next` raises it, as any other failure
            self._refused = error
        self._loop = asyncio.get_running_loop()
        self._alarm: asyncio.TimerHandle | None = None
        self._wanted = asyncio.Event()
        self._undelivered: list[News] = []  # what came before it was requested
        self._reading = self._closing = False
        self.ask()
        self._task = self._loop.create_task(self._run())

    def ask(self) -> None:
        self.next: asyncio.Future[Token | None] = self._loop.create_future()
        if self._undelivered:
            self._deliver(self._undelivered.pop(0))
            return
        self._wanted.set()
        self._patience = self._loop.time() + self.stall_s
        if self._alarm is None:  # one timer for many tokens: it checks the time when it fires
            self._alarm = self._loop.call_at(self._patience, self._on_stall)

    async def _run(self) -> None:
        """Get a token whenever one is requested, until the end of the answer, a failure or `close`."""
        interrupt: asyncio.CancelledError | None
        try:
            while not self._closing:
                try:
                    await self._wanted.wait()
                    interrupt = None
                except asyncio.CancelledError as error:  # by what the generator holds, such as a timeout, or the loop
                    interrupt = error
                if self._closing:
                    return
                news = await self._following(interrupt)
                if self._wanted.is_set():
                    self._wanted.clear()
                    self._deliver(news)
                else:
                    self._undelivered.append(news)
                if not isinstance(news, Token):
                    return
                if interrupt and self._task.cancelling():  # it did not cancel itself, or it would have undone that
                    self._undelivered.append(CutError(self.endpoint.name, "it was cancelled"))
                    return
        finally:
            await self._closed()

    async def _following(self, interrupt: asyncio.CancelledError | None) -> News:
        """The next token; an interrupt is thrown into the generator first. Failures come as EndpointErrors."""
        name, self._reading = self.endpoint.name, True
        try:
            if self._tokens is None:
                raise self._refused or CutError(name, "it gave no generator of tokens")
            step = anext(self._tokens) if interrupt is None else self._tokens.athrow(interrupt)
            while (index := self._checked(token := await step)) < self.index:
                if self._closing:
                    return None
                step = anext(self._tokens)  # a repeated token, of a chunk sent twice, is dropped
            if index > self.index:
                raise ProtocolError(name, f"sent token {index} where {self.index} was next")
            self.index += 1
            return token
        except StopAsyncIteration:
            return None
        except BaseException as error:
            if self._closing and _stops(error):
                return None
            if self._closing or isinstance(error, KeyboardInterrupt | SystemExit):
                raise  # it failed while it was being closed
            return self._failure(error)
        finally:
            self._reading = False

    def _checked(self, token: Token) -> int:
        """The index of a token, after checking that it is one; it counts as generated."""
        if not (isinstance(token, Token) and isinstance(token.index, int) and isinstance(token.text, str)):
            raise ProtocolError(self.endpoint.name, f"sent {token!r:.60}, which is no Token with an index and a text")
        token.text.encode()  # raises for half a character
        self.made += 1
        return token.index

    def _failure(self, error: BaseException) -> EndpointError:
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:  # out of a TaskGroup
            error = error.exceptions[0]
        if isinstance(error, EndpointError):
            return error
        what = "it was cancelled" if _stops(error) else f"{type(error).__name__}: {error}"
        failure = CutError(self.endpoint.name, what)
        failure.__cause__ = error
        return failure

    def _deliver(self, news: News) -> None:
        if self.next.done():
            return
        if isinstance(news, EndpointError):
            self.next.set_exception(news)
        else:
            self.next.set_result(news)

    def _on_stall(self) -> None:
        self._alarm = None
        if not self.next.done():
            if self._loop.time() < self._patience:
                self._alarm = self._loop.call_at(self._patience, self._on_stall)
            else:
                self._deliver(StalledError(self.endpoint.name, f"sent nothing for {self.stall_s:g} s"))

    @property
    def charged(self) -> int:
        """Tokens generated so far, also those not yet delivered."""
        return self.made + (self._reported("ahead") or 0)

    @property
    def read(self) -> int | None:
        """Tokens of the prefix that the endpoint has prefilled; None where unknown."""
        return self._reported("read")

    def _reported(self, what: str) -> int | None:
        """What the endpoint reports of this generation; None if it cannot, which is no reason to end the answer."""
        tell, name = getattr(self.endpoint, what, None), self.endpoint.name
        if tell is None or self._tokens is None:
            return None
        try:
            found = tell(self._tokens)
            return None if found is None else non_negative_int(found, f"{name}: {what}")
        except Exception as error:  # a user's function
            warnings.warn(f"{name} cannot tell `{what}`: {type(error).__name__}: {error}", stacklevel=2)
            return None

    async def close(self) -> None:
        """Cancel the generation; returns once the endpoint has confirmed that it stopped."""
        if self._alarm:
            self._alarm.cancel()
        self.next.cancel()
        self._closing = True
        self._wanted.set()
        if self._reading:
            self._task.cancel()
        await wait_stopped(self._task)

    async def _closed(self) -> None:
        if self._tokens is not None:
            try:
                await self._tokens.aclose()
            except BaseException as error:
                if not _stops(error):
                    raise


def _generator(endpoint: Endpoint, prefix: Prefix) -> AsyncGenerator[Token, None]:
    tokens = endpoint.generate(prefix)
    if not (hasattr(tokens, "__anext__") and hasattr(tokens, "aclose")):
        if asyncio.iscoroutine(tokens):
            tokens.close()
        raise CutError(endpoint.name, f"generate must give an async generator, got {type(tokens).__name__}")
    return tokens


def _stops(error: BaseException) -> bool:
    """Whether an error is what a cancel or a close throws in, also if a TaskGroup has wrapped it."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_stops, error.exceptions))
    return isinstance(error, asyncio.CancelledError | GeneratorExit)
