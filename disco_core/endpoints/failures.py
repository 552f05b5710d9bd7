"""Why an endpoint over HTTP gave no answer: an error for every failure, in the server's words and without its key."""

import json
import ssl
from dataclasses import dataclass, field
from typing import Any

import httpx

from disco_core.endpoints.events import error_words, is_filtered, page
from disco_core.errors import (
    CutError,
    EndpointError,
    FilteredError,
    ProtocolError,
    RefusedError,
    StalledError,
)

MEANING = {
    401: "the key is wrong or missing",
    403: "the key does not allow this",
    404: "no such address or model",
    405: "this address takes no requests",
    429: "too many requests",
}
STREAMS = ("text/event-stream", "application/octet-stream", "text/plain", "")


def redact(key: str | None, text: str) -> str:
    """A server's text in one line of at most 300 characters, with the key redacted."""
    line = " ".join(text.encode(errors="replace").decode().split())
    return (line.replace(key, "***") if key else line)[:300]


@dataclass(frozen=True)
class Failures:
    """The errors of one endpoint: its name, the address it sends to, and the key that no message shows."""

    name: str
    address: str
    key: str | None = field(repr=False)

    def interrupted(self, words: str) -> EndpointError:
        """The error for what is no event in mid-answer, with which a part of it may be lost."""
        if not all(character.isprintable() or character.isspace() for character in words):
            return self.unreadable(words)
        return self.error(CutError, page(words.encode(errors="replace")), "in mid-answer it said")

    def quote(self, text: object, most: int = 60) -> str:
        """A server's text, shortened and with the key redacted, for an error message."""
        return redact(self.key, str(text))[:most]

    def error(self, kind: type[EndpointError], value: Any, what: str = "") -> EndpointError:
        """An error in the server's own words, which `value` has in some shape."""
        if is_filtered(value):
            kind = FilteredError
        told = self.quote(error_words(value) or (json.dumps(value) if value else ""), 300)
        return kind(self.name, ": ".join(filter(None, [what, told])) or "an error")

    def refusal(self, response: httpx.Response, body: bytes) -> EndpointError:
        """The error for a status that is no success."""
        status, after = response.status_code, self.quote(response.headers.get("retry-after", ""))
        after = f", Retry-After {after}{' s' if after.isdigit() else ''}" if after else ""
        where = f" at {self.quote(response.url.copy_with(query=None), 100)}" if status in (404, 405) else ""
        what = ": ".join(filter(None, [f"{status}{where}{after}", MEANING.get(status, "")]))
        return self.error(RefusedError, page(body), what)

    def unfinished(self, response: httpx.Response, told: Any) -> EndpointError:
        """The error for a stream that ended before its answer, or that is none."""
        media = response.headers.get("content-type", "")
        if media.split(";")[0].strip().lower() in STREAMS:
            return self.error(CutError, told, "the stream ended without a finish reason")
        return self.error(ProtocolError, told, f"it answered with {self.quote(media)}, not with a stream of events")

    def unreadable(self, error: object) -> ProtocolError:
        return ProtocolError(self.name, f"it sent something unreadable: {self.quote(error, 80)}")

    def broken(self, error: Exception) -> EndpointError:
        """The error for a failure of the transport, or for what nobody can read."""
        name, what = self.name, self.quote(error, 200) or type(error).__name__
        if isinstance(error, httpx.ConnectTimeout):
            return RefusedError(name, f"it cannot be reached at {self.address}: no connection within its deadline")
        if isinstance(error, httpx.TimeoutException):
            return StalledError(name, "it sent nothing within its deadline")
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLWantReadError):
                return RefusedError(name, f"TLS failed: {what}")
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, httpx.ConnectError | httpx.UnsupportedProtocol | httpx.InvalidURL | httpx.ProxyError):
            return RefusedError(name, f"it cannot be reached at {self.address}: {what}")
        if isinstance(error, httpx.TooManyRedirects):
            return RefusedError(name, f"it sends from one address to another: {what}")
        if isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in what and "closed" not in what:
            return ProtocolError(name, f"it does not speak HTTP: {what}")
        if isinstance(error, httpx.HTTPError | httpx.StreamError | OSError):
            return CutError(name, f"the connection broke: {what}")
        return self.unreadable(error)
