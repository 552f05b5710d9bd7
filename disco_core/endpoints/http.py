"""Shared by endpoints over HTTP: connections, requests, and the events of an answer."""

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx

from disco_core import checks
from disco_core.endpoints.base import Endpoint, Prefix, Token
from disco_core.endpoints.events import (
    LONGEST_STRAY,
    Events,
    error_in,
    error_words,
    normal,
    objects,
    page,
)
from disco_core.endpoints.failures import Failures
from disco_core.endpoints.stop import Answer
from disco_core.errors import (
    CutError,
    EndpointError,
    InputError,
    RefusedError,
)

Request = Callable[[], Awaitable[dict[str, Any]]]
LONGEST_PAGE = 1 << 16  # bytes of a reply that is no stream of events
LINGER_S = 2.0  # seconds that the connection may take to end after the answer has; it can be used again then
KEEP_ALIVE = ("ping", "pong", "heartbeat", "keepalive", "processing")  # names of events, or their data


def secret(key: str | None, name: str) -> str | None:
    """The key, if it can be sent in a header; InputError otherwise, without showing it."""
    if not (key is None or isinstance(key, str)):
        raise InputError(f"{name}: the key must be a text, got one of type {type(key).__name__}")
    key = None if key is None else key.strip()
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise InputError(f"{name}: the key must be printable ASCII without spaces")
    return key


def address(url: str, name: str) -> str:
    """The URL, if it has no credentials, query or fragment; InputError otherwise."""
    allowed = f"{name}: url must be http://host or https://host, without a key, a query or a fragment"
    try:
        parts = urlsplit(checks.instance_of(url, str, f"{name}: url"))
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except InputError:
        raise
    except ValueError:
        good = False
    hidden = any(mark in url for mark in "@?#")
    if hidden or not good or not url.isprintable() or " " in url:
        raise InputError(allowed if hidden else f"{allowed}, got {url!r:.80}")
    return url.rstrip("/")


class RemoteAnswer(Answer):
    """An answer out of the events of a server.

    done       whether the server has said how it ended: whatever happens to the connection afterwards is no failure
    repeating  whether it says so with every event, as some servers do: only the end of the stream is the end then
    stray      words of an event that is no part of an answer, perhaps the reason why there is none
    """

    BEGIN_S = 0.0  # seconds to wait, after a cancel, for the first byte of a request that was sent
    done = repeating = False
    stray = ""

    def __init__(self, endpoint: "Remote", path: str, request: Request, prefix: Prefix) -> None:
        super().__init__(endpoint._tokens(path, request, self), prefix, endpoint.stop)
        self.endpoint, self.prefix = endpoint, prefix

    @property
    def ended(self) -> bool:  # type: ignore[override]
        """Whether no further token is being generated: the server has said so, or a stop text was found."""
        return self.done or super().ended

    async def read(self, event: dict[str, Any]) -> list[Token]:
        """The tokens in an event."""
        raise NotImplementedError

    def finish(self) -> list[Token]:
        """The tokens still held back, once it is done; an EndpointError if the answer is not complete."""
        return []

    async def cancelled(self) -> None:
        """Return when the server has stopped, after the connection was closed."""


class Remote(Endpoint):
    """An endpoint at a URL; it keeps its key out of messages and its connections open.

    stop           texts that end what it generates, also where one began in the text it continues
    stale_retries  requests that were sent again because an idle connection had been dropped

    Connections belong to an event loop; another loop opens its own.
    """

    stop: tuple[str, ...] = ()

    def __init__(self, name: str, url: str, key: str | None, deadline_s: float, settings: dict[str, Any]) -> None:
        self.name, self.stale_retries = checks.instance_of(name, str, "name"), 0
        self.failures = Failures(name, address(url, name), secret(key, name))
        self.deadline_s = checks.positive(deadline_s, f"{name}: deadline_s")
        headers = {"Authorization": f"Bearer {self.failures.key}"} if self.failures.key else {}
        self._settings = settings | {"headers": {"Accept-Encoding": "identity"} | headers}
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.__aexit__(None, None, None)

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _new_client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=16)
        options: dict[str, Any] = {"timeout": self.deadline_s, "limits": limits, **self._settings}
        try:
            return httpx.AsyncClient(**options)
        except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
            what = self.failures.quote(error if isinstance(error, OSError) else type(error).__name__, 200)
        proxies = ", ".join(unusable_proxies()) if self._settings["trust_env"] else ""
        if proxies:
            what = f"the environment's {proxies} is no proxy that can be used; http:// and https:// can be"
        raise RefusedError(self.name, f"no connection can be made: {what}")

    def _pool(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._client, self._loop = self._new_client(), loop
        return self._client

    async def _tokens(self, path: str, request: Request, answer: RemoteAnswer) -> AsyncGenerator[Token, None]:
        """The tokens of one answer; every failure as an EndpointError with this endpoint's name."""
        failed: EndpointError | None = None
        try:
            async with AsyncExitStack() as stack:
                response = await self._answered(answer, asyncio.create_task(self._send(path, await request(), stack)))
                async for name, data in await stack.enter_async_context(aclosing(self._events(response, answer))):
                    for event in self._parsed(name, data, answer):
                        for token in await answer.read(event):
                            yield token
        except (GeneratorExit, asyncio.CancelledError):
            if not answer.done:
                await answer.cancelled()
            raise
        except EndpointError as error:
            failed = error
        except Exception as error:
            failed = self.failures.broken(error)
        if failed and not answer.done:  # raised here so that no other error becomes its context
            failed.__context__ = None
            raise failed
        for token in answer.finish():
            yield token

    async def _answered(self, answer: RemoteAnswer, sending: "asyncio.Task[httpx.Response]") -> httpx.Response:
        """The response to a request that is being sent; if it is cancelled, the answer may want to know of it."""
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            await asyncio.wait([sending], timeout=answer.BEGIN_S)
            raise
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            sending.cancelled() or sending.exception()  # retrieved, since nobody else will

    async def _send(self, path: str, body: dict[str, Any], stack: AsyncExitStack) -> httpx.Response:
        """The response; the request is sent again, on a new connection, if an idle one had been dropped."""
        connected = list[str]()

        async def trace(event: str, _: object) -> None:
            connected.extend([event] if event == "connection.connect_tcp.started" else [])

        async def send(client: httpx.AsyncClient) -> httpx.Response:
            url = f"{self.failures.address}{path}"
            message = client.build_request("POST", url, json=body, extensions={"trace": trace})
            response = await client.send(message, stream=True)
            stack.push_async_callback(response.aclose)
            return response

        try:
            return await send(self._pool())
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            if connected:
                raise
            self.stale_retries += 1
        return await send(await stack.enter_async_context(self._new_client()))

    async def _events(self, response: httpx.Response, answer: RemoteAnswer) -> AsyncGenerator[tuple[str, str], None]:
        """Name and data of each event; a stream that ends before the answer is done is an EndpointError."""
        failed, events = None, Events()
        if not response.is_success:
            raise self.failures.refusal(response, await self._page(response))
        try:
            async with aclosing(_received(response, answer)) as pieces:
                async for piece in pieces:
                    for event in events.feed(piece):
                        self._refuse_garbled(events, answer)
                        yield event
                    self._refuse_garbled(events, answer)
                    if len(events.stray) == LONGEST_STRAY:
                        break
        except EndpointError:
            raise
        except Exception as error:
            failed = self.failures.broken(error)
        for name, data in events.feed(b"\n\n"):
            with suppress(ValueError):  # the connection ended within it
                if name == "error" or objects(data):
                    yield name, data
        if failed or not (answer.done or answer.repeating):
            told = page(events.stray.encode(errors="replace")) if events.stray else answer.stray
            raise failed or self.failures.unfinished(response, told)
        answer.done = True

    def _refuse_garbled(self, events: Events, answer: RemoteAnswer) -> None:
        """What cannot be read in mid-answer may have been a part of it; before its first token it is a page."""
        if events.garbled and answer.made and not answer.done:
            raise self.failures.interrupted(events.stray)

    async def _page(self, response: httpx.Response) -> bytes:
        """The body of a refusal, as far as it comes soon."""
        raw = b""
        with suppress(httpx.HTTPError, TimeoutError):
            async with asyncio.timeout(min(LINGER_S, self.deadline_s)):
                async for piece in response.aiter_bytes():
                    raw += piece
                    if len(raw) > LONGEST_PAGE:
                        break
        return raw

    def _parsed(self, name: str, data: str, answer: RemoteAnswer) -> Iterator[dict[str, Any]]:
        """The objects in the data of an event; none in a keep-alive. An EndpointError if it reports one."""
        if normal(name) in KEEP_ALIVE:
            return
        try:
            values = objects(data)
        except ValueError as error:
            if name != "error" and data.lstrip().startswith(("{", "[")):
                raise self.failures.unreadable(error) from None
            if name != "error" and answer.made and not answer.done and normal(data) not in KEEP_ALIVE:
                raise self.failures.interrupted(data) from None
            values, answer.stray = [data] * (name == "error"), data
        for value in values:
            found = error_in(value) if "error" in data else {}
            if found or name == "error":
                raise self.failures.error(CutError, found or value)
            if isinstance(value, dict):
                if not value.get("choices") and "content" not in value:
                    answer.stray = error_words(value) or answer.stray or data * ("choices" not in value)
                yield value
            elif value is not None:
                raise self.failures.unreadable(data)


async def _received(response: httpx.Response, answer: RemoteAnswer) -> AsyncGenerator[bytes, None]:
    """The bytes of a response, until it ends, or does not for `LINGER_S` after the answer has."""
    clock, deadline, made = asyncio.get_running_loop().time, 0.0, -1
    received: Any = response.aiter_bytes()
    async with aclosing(received) as pieces:
        with suppress(StopAsyncIteration, TimeoutError):
            while True:
                if answer.done and answer.made > made:  # some servers give a finish reason with every chunk
                    deadline, made = clock() + LINGER_S, answer.made
                yield await asyncio.wait_for(anext(pieces), max(0.0, deadline - clock()) if answer.done else None)


def unusable_proxies() -> list[str]:
    """Names of the environment's variables for proxies that httpx cannot use."""
    names = {name: value for name, value in os.environ.items() if value and name.lower().endswith("_proxy")}
    unusable = []
    for name in names.keys() - {"no_proxy", "NO_PROXY"}:
        try:
            url = names[name] if "://" in names[name] else f"http://{names[name]}"
            httpx.AsyncClient(proxy=url, verify=False, trust_env=False)
        except Exception:
            unusable.append(name)
    return sorted(unusable) or sorted(names.keys() & {"no_proxy", "NO_PROXY"})
