"""What endpoints over HTTP share: events out of bytes, keys kept out of messages, failures by their names."""

import ssl
from collections.abc import Iterator

from disco_core.errors import CutError, EndpointError, InputError, ProtocolError, RefusedError, StalledError

BYTES_PER_TOKEN = 4  # a rule of thumb for English, where nobody counts
LONGEST_EVENT = 1 << 22  # bytes: an event stream has no such line


class Events:
    """The data of server-sent events out of bytes, however they were cut: a character or a line may be split."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, raw: bytes) -> Iterator[str]:
        """The events that these bytes complete. ValueError for what is no text, or a line without an end."""
        lines = (self._rest + raw).replace(b"\r\n", b"\n").split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > LONGEST_EVENT:
            raise ValueError("a line without an end")
        for line in lines:
            line = line.removesuffix(b"\r")
            field, _, value = line.partition(b":")
            if field in (b"data", b"error"):  # older servers report an error under its own name
                self._data.append(value.removeprefix(b" ").decode())
            elif not line and self._data:
                yield "\n".join(self._data)
                self._data = []


def secret(key: str | None, name: str) -> str | None:
    """A key that can stand in a header; InputError otherwise, without showing it."""
    key = None if key is None else key.strip()
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise InputError(f"{name}: the key must be printable ASCII without spaces")
    return key


def without(key: str | None, text: str) -> str:
    """A server's words in one line of bounded length, the key taken out should it repeat it."""
    line = " ".join(text.split())
    return (line.replace(key, "***") if key else line)[:300]


def refusal(name: str, status: int, retry_after: str | None, said: str) -> RefusedError:
    """What a status other than 200 means."""
    meaning = {
        401: "the key is wrong or missing",
        403: "the key does not allow this",
        404: "no such address or model",
        429: "too many requests",
    }
    after = f", Retry-After {retry_after} s" if retry_after else ""
    return RefusedError(name, ": ".join(filter(None, [f"{status}{after}", meaning.get(status, ""), said])))


def transport_failure(name: str, error: BaseException) -> EndpointError:
    """What a failure of the transport means; by the names of its kinds, which httpx and its successor share."""
    what = " ".join(str(error).split())[:200] or type(error).__name__
    kinds = {kind.__name__ for kind in type(error).__mro__}
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return RefusedError(name, f"TLS failed: {what}")
        cause = cause.__cause__ or cause.__context__
    if "ConnectTimeout" in kinds:
        return RefusedError(name, "it cannot be reached: no connection within its deadline")
    if "TimeoutException" in kinds:
        return StalledError(name, "it sent nothing within its deadline")
    if kinds & {"ConnectError", "UnsupportedProtocol", "InvalidURL"}:
        return RefusedError(name, f"it cannot be reached: {what}")
    if "RemoteProtocolError" in kinds and "disconnected" not in what and "closed" not in what:
        return ProtocolError(name, f"it does not speak HTTP: {what}")
    return CutError(name, f"the connection broke: {what}")
