"""Shared by endpoints over HTTP: server-sent events from bytes, keys kept out of messages, names for failures."""

import asyncio
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from disco_core import checks
from disco_core.errors import CutError, EndpointError, InputError, ProtocolError, RefusedError, StalledError

LONGEST_EVENT = 1 << 22  # bytes; no line of an event stream is longer
MEANING = {
    401: "the key is wrong or missing",
    403: "the key does not allow this",
    404: "no such address or model",
    429: "too many requests",
}


class Events:
    """The data of server-sent events from bytes that may be cut anywhere, also within a character or a line."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, raw: bytes) -> Iterator[str]:
        """The events that these bytes complete. ValueError for bytes that are no text, or a line that is too long."""
        lines = (self._rest + raw).replace(b"\r\n", b"\n").split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > LONGEST_EVENT:
            raise ValueError("a line that is too long")
        for line in lines:
            line = line.removesuffix(b"\r")
            field, _, value = line.partition(b":")
            if field in (b"data", b"error"):  # older servers report an error under its own name
                self._data.append(value.removeprefix(b" ").decode())
            elif not line and self._data:
                yield "\n".join(self._data)
                self._data = []


def secret(key: str | None, name: str) -> str | None:
    """The key, if it can be sent in a header; InputError otherwise, without showing it."""
    key = None if key is None else key.strip()
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise InputError(f"{name}: the key must be printable ASCII without spaces")
    return key


def redact(key: str | None, text: str) -> str:
    """A server's text in one line of at most 300 characters, with the key redacted."""
    line = " ".join(text.split())
    return (line.replace(key, "***") if key else line)[:300]


def address(url: str, name: str) -> str:
    """The URL, if it has no credentials, query or fragment; InputError otherwise."""
    allowed = f"{name}: url must be http://host or https://host, without a key, a query or a fragment"
    try:
        parts = urlsplit(checks.instance_of(url, str, "url"))
        hidden = parts.username or parts.password or parts.query or parts.fragment or "@" in url
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.isprintable()
    except ValueError:
        raise InputError(allowed) from None
    if hidden or not good:
        raise InputError(allowed if hidden else f"{allowed}, got {url!r:.80}")
    return url.rstrip("/")


class Remote:
    """An endpoint at a URL; it keeps its key out of messages and its connections open.

    stale_retries  requests that were sent again because an idle connection had been dropped

    Connections belong to an event loop; another loop opens its own.
    """

    def __init__(self, name: str, url: str, key: str | None, deadline_s: float) -> None:
        self.name, self.stale_retries = name, 0
        self._address, self._key = address(url, name), secret(key, name)
        self.deadline_s = checks.positive(deadline_s, "deadline_s")
        self._client: Any = None
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

    def _new_client(self) -> Any:
        raise NotImplementedError

    def _pool(self) -> Any:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._client, self._loop = self._new_client(), loop
        return self._client

    def _quote(self, words: object, most: int = 60) -> str:
        """A server's text, shortened and with the key redacted, for an error message."""
        return redact(self._key, str(words))[:most]

    def _refusal(self, status: int, retry_after: str | None, text: object) -> RefusedError:
        """The error for a status other than 200."""
        after = f", Retry-After {self._quote(retry_after)} s" if retry_after else ""
        words = [f"{status}{after}", MEANING.get(status, ""), self._quote(text, 300)]
        return RefusedError(self.name, ": ".join(filter(None, words)))

    def _unreadable(self, error: object) -> ProtocolError:
        return ProtocolError(self.name, f"it sent something unreadable: {self._quote(error, 80)}")

    def _broken(self, error: BaseException) -> EndpointError:
        """The error for a failure of the transport, by its classes' names, which httpx and its successor share."""
        name, what = self.name, self._quote(error, 200) or type(error).__name__
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "ConnectTimeout" in kinds:
            return RefusedError(name, "it cannot be reached: no connection within its deadline")
        if "TimeoutException" in kinds:
            return StalledError(name, "it sent nothing within its deadline")
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLWantReadError):
                return RefusedError(name, f"TLS failed: {what}")
            cause = cause.__cause__ or cause.__context__
        if kinds & {"ConnectError", "UnsupportedProtocol", "InvalidURL"}:
            return RefusedError(name, f"it cannot be reached: {what}")
        if "RemoteProtocolError" in kinds and "disconnected" not in what and "closed" not in what:
            return ProtocolError(name, f"it does not speak HTTP: {what}")
        return CutError(name, f"the connection broke: {what}")


async def watched(request: Any) -> None:
    """An event hook of a client that marks a request whose connection was new."""

    async def trace(event: str, _: object) -> None:
        if event == "connection.connect_tcp.started":
            request.extensions["connected"] = True

    request.extensions["trace"] = trace


def stale(error: Any) -> bool:
    """Whether a request failed unanswered on a connection used before, which is no failure of the endpoint."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    dropped = kinds & {"RemoteProtocolError", "ReadError", "WriteError"}
    return bool(dropped) and "connected" not in error.request.extensions
