"""One piece of work of one end of a live answer: asked for a token at a time, timed, and stopped."""

import asyncio
from collections.abc import AsyncGenerator

from disco_core.cost import End
from disco_core.endpoints.base import Endpoint, Prefix, Token, ahead
from disco_core.errors import CutError, EndpointError, ProtocolError, StalledError


class Work:
    """One piece of work of one end. `next` is the token it was asked for, None for the end of the answer.

    The alarm is told to `next` at its time, whatever the endpoint does then: a cancel may take it long to confirm.
    """

    def __init__(self, end: End, endpoint: Endpoint, prefix: Prefix, stall_s: float) -> None:
        self.end, self.endpoint, self.stall_s = end, endpoint, stall_s
        self.index, self.made = len(prefix.generated), 0
        self._tokens: AsyncGenerator[Token, None] | None = None
        self._refused: Exception | None = None
        try:
            self._tokens = endpoint.generate(prefix)
        except Exception as error:  # for `next` to tell, as any other failure
            self._refused = error
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
            if self._tokens is None:
                raise self._refused or CutError(name, "it gave no tokens to ask for")
            while (token := await anext(self._tokens, None)) is not None:
                if not isinstance(token, Token) or not isinstance(token.text, str):
                    raise ProtocolError(name, f"sent {token!r:.60}, which is no Token with a text")
                token.text.encode()  # raises for half a character
                self.made += 1
                if token.index > self.index:
                    raise ProtocolError(name, f"sent token {token.index} where {self.index} was next")
                if token.index == self.index:
                    break
                # a token that was here before: a chunk sent twice is dropped
        except asyncio.CancelledError:
            self._tell(CutError(name, "it was cancelled"))
            raise
        except BaseException as error:
            if self._asking.cancelling() or isinstance(error, KeyboardInterrupt | SystemExit):
                raise  # the first: it broke while it was being closed
            failure = (
                error if isinstance(error, EndpointError) else CutError(name, f"{type(error).__name__}: {error}")
            )
            failure.__cause__ = error.__cause__ if failure is error else error
            self._tell(failure)
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
        return self.made + (ahead(self.endpoint, self._tokens) if self._tokens else 0)

    @property
    def read(self) -> int | None:
        """Tokens of its prefix that the endpoint has read; None where it does not tell."""
        told = getattr(self.endpoint, "read", None)
        return told(self._tokens) if told and self._tokens else None

    async def close(self) -> None:
        """Cancel what it does; returns once the endpoint has confirmed that it stopped."""
        if self._alarm:
            self._alarm.cancel()
        self.next.cancel()
        self._asking.cancel()
        await asyncio.wait([self._asking])
        if self._tokens:
            await self._tokens.aclose()
        if not self._asking.cancelled():
            self._asking.result()
