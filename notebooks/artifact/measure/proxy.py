"""A proxy in front of a server on this machine: it logs what passes for every request, and injects faults.

It speaks as much HTTP as llama.cpp's server and httpx need: requests with a length, replies with a length or in
chunks, connections that serve one request after the other. The log has what the server sent, not what was forwarded,
so that it tells what the server did whatever the fault was.
"""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"
STREAMED = "/completion"  # the path whose replies are streams of events
POLL_S = 0.003  # how often the proxy looks whether the client has left
TRICKLE_S = 0.004  # between the pieces of a slow connection
STATUS = {"429": "429 Too Many Requests", "503": "503 Service Unavailable"}
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: the connection is reset, not closed

# what comes in place of an event (True), or before it (False); %d: the tokens generated so far
MALFORMED: dict[str, tuple[bytes, bool]] = {
    "cut json": (b'data: {"content": "x", "tok\n\n', True),
    "no fields": (b"data: {}\n\n", True),
    "no tokens": (b'data: {"content": "x", "stop": false, "tokens_predicted": 3}\n\n', True),
    "wrong types": (b'data: {"content": 7, "tokens": "x", "stop": 0, "tokens_predicted": null}\n\n', True),
    "a list": (b"data: [1, 2]\n\n", True),
    "half a letter": (
        b'data: {"content": "\\ud83d", "tokens": [5], "stop": false, "tokens_predicted": %d}\n\n',
        True,
    ),
    "a page": (b"data: <html><h1>502 Bad Gateway</h1></html>\n\n", True),
    "bytes": (b"\xff\xfe\x00\x80" * 40 + b"\n\n", True),
    "an error": (b'data: {"error": {"code": 500, "message": "out of memory", "type": "server_error"}}\n\n', True),
    "an old error": (b'error: {"code": 500, "message": "out of memory"}\n\n', True),
    "a count too high": (b'data: {"content": "x", "tokens": [5], "stop": false, "tokens_predicted": 5000}\n\n', True),
    "a keep-alive": (b": ping\n\n", False),
    "an empty event": (b"data:\n\n", False),
}


@dataclass
class Fault:
    """A fault that strikes once so many events of a stream have come from the server, or after so many seconds.

    share    where within a piece of a reply it strikes, between 0 and 1
    struck   whether it has changed anything yet
    """

    kind: str
    variant: str = ""
    after_events: int | None = None
    after_s: float = 0.0
    lasts_s: float = 0.0
    share: float = 0.5
    struck: bool = False


@dataclass
class Exchange:
    """One request: what was asked, what the server sent, how many bytes were forwarded, and how it ended."""

    path: str
    body: dict[str, Any]
    status: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    received: int = 0
    forwarded: int = 0
    outcome: str = "running"

    @property
    def final(self) -> dict[str, Any] | None:
        """The server's last event, with its own counts; None if the server did not come to it."""
        return next((event for event in self.events if event.get("stop")), None)

    @property
    def predicted(self) -> int:
        """Tokens the server has reported to have generated."""
        return max((int(event.get("tokens_predicted", 0)) for event in self.events), default=0)


class _EndedError(Exception):
    """The exchange is over; its text says how."""


class Proxy:
    """`url` for clients, once started; `upstream` is where the server is, None while there is none.

    armed       faults in force
    exchanges   of the streamed requests, in order; `events` are all that came from the server for them
    """

    def __init__(self) -> None:
        self.upstream: tuple[str, int] | None = None
        self.armed, self.exchanges, self.events = list[Fault](), list[Exchange](), 0
        self._awaited = list[tuple[int, asyncio.Future[None]]]()
        self._connections, self._busy = set[asyncio.Task[None]](), set[asyncio.StreamWriter]()

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._connected, HOST, 0)
        self.url = f"http://{HOST}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Drop all connections and stop listening."""
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def clear(self) -> None:
        """Begin the log of another stream, without faults."""
        self.armed, self.exchanges, self.events = [], [], 0
        self._awaited = []

    @property
    def running(self) -> int:
        """Requests that have not ended."""
        return len(self._busy)

    async def reached(self, events: int) -> None:
        """Return once the server has sent so many events since the last `clear`."""
        if self.events < events:
            waiter = asyncio.get_running_loop().create_future()
            self._awaited.append((events, waiter))
            await waiter

    def cut(self) -> bool:
        """Reset the connections of all requests that are running; whether there were any."""
        for writer in self._busy:
            _reset(writer)
        return bool(self._busy)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while not writer.is_closing():
                    head = await reader.readuntil(b"\r\n\r\n")
                    raw = await reader.readexactly(int(_header(head, b"content-length") or 0))
                    await self._exchange(head, raw, reader, writer)
        finally:
            self._connections.discard(task)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _exchange(
        self, head: bytes, raw: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One request; ends the client's connection unless the reply is whole."""
        path = head.split(b" ")[1].decode()
        log = Exchange(path, json.loads(raw) if raw else {})
        if path == STREAMED:
            self.exchanges.append(log)
        self._busy.add(writer)
        carried = asyncio.create_task(self._carried(log, head, raw, writer))
        try:
            while not carried.done() and not (reader.at_eof() or reader.exception() or writer.is_closing()):
                await asyncio.wait([carried], timeout=POLL_S)
            if carried.done():
                log.outcome = carried.result()
            else:
                log.outcome = "cut" if writer.is_closing() else "client left"
        except (OSError, asyncio.IncompleteReadError) as error:
            log.outcome = f"server left: {type(error).__name__}"
        except _EndedError as ended:
            log.outcome = str(ended)
        finally:
            carried.cancel()
            await asyncio.wait([carried])
            self._busy.discard(writer)
        if log.outcome != "whole":
            writer.close()

    async def _carried(self, log: Exchange, head: bytes, raw: bytes, writer: asyncio.StreamWriter) -> str:
        """Pass the request on, and the reply back."""
        for fault in self.armed:
            if fault.kind in STATUS and (log.path == STREAMED or fault.variant == "everything"):
                return await self._refused(fault, log, writer)
        if self.upstream is None:
            raise _EndedError("no server")
        up, out = await asyncio.open_connection(*self.upstream)
        try:
            lines = [line for line in head.split(b"\r\n") if line and not line.lower().startswith(b"connection:")]
            out.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + raw)
            reply = await up.readuntil(b"\r\n\r\n")
            log.status = reply.split(b" ")[1].decode()
            kind, length = _header(reply, b"content-type") or b"", _header(reply, b"content-length")
            size = b"Content-Length: " + length if length is not None else b"Transfer-Encoding: chunked"
            first = reply.split(b"\r\n")[0]
            writer.write(b"\r\n".join([first, b"Content-Type: " + kind, size, b"", b""]))
            if length is not None:
                await self._forward(log, await up.readexactly(int(length)), writer, chunked=False)
                return "whole"
            unread = b""
            async for piece in _chunks(up):
                unread = self._logged(log, unread + piece)
                await self._forward(log, piece, writer, chunked=True)
            writer.write(b"0\r\n\r\n")
            await writer.drain()
            return "whole"
        finally:
            out.transport.abort()
            with suppress(OSError):
                await out.wait_closed()

    async def _refused(self, fault: Fault, log: Exchange, writer: asyncio.StreamWriter) -> str:
        fault.struck = True
        log.status, text = fault.kind, b'{"error": {"message": "the proxy refuses this", "code": 0}}'
        after = b"Retry-After: 1\r\n" if fault.share < 0.5 else b""
        lines = [f"HTTP/1.1 {STATUS[fault.kind]}".encode(), b"Content-Type: application/json"]
        writer.write(b"\r\n".join([*lines, b"Content-Length: %d" % len(text), after + b"\r\n"]) + text)
        await writer.drain()
        return "whole"

    def _logged(self, log: Exchange, raw: bytes) -> bytes:
        """Note the events that are complete; the rest of the bytes."""
        *whole, rest = raw.split(b"\n\n")
        for one in whole:
            if one.startswith(b"data: "):
                log.events.append(json.loads(one.removeprefix(b"data: ")))
                self.events += log.path == STREAMED
        for waited in [waited for waited in self._awaited if waited[0] <= self.events]:
            self._awaited.remove(waited)
            if not waited[1].done():
                waited[1].set_result(None)
        return rest

    async def _forward(self, log: Exchange, piece: bytes, writer: asyncio.StreamWriter, *, chunked: bool) -> None:
        """A piece of the reply, with the faults in force."""
        log.received += len(piece)
        await asyncio.sleep(0)  # a fault that waited for this event is armed before it is forwarded
        parts = [piece]
        for fault in self.armed if log.path == STREAMED else []:
            if fault.kind == "malformed" and not fault.struck:
                text, replaces = MALFORMED[fault.variant]
                if b"%d" in text and not log.predicted:
                    continue  # it comes in place of a token
                fault.struck, text = True, text.replace(b"%d", str(log.predicted).encode())
                parts = [text] if replaces else [text, *parts]
            elif fault.kind == "slow" and (fault.variant != "pause" or not fault.struck):
                await asyncio.sleep(fault.lasts_s if fault.variant == "pause" else fault.lasts_s / 20)
                fault.struck = True
                if fault.variant == "trickle":
                    parts = [part[i : i + 7] for part in parts for i in range(0, len(part), 7)]
            elif fault.kind == "cut" and not fault.struck:
                fault.struck = True
                whole = b"".join(parts)
                whole = b"%x\r\n%b\r\n" % (len(whole), whole) if chunked else whole
                writer.write(whole[: int(fault.share * len(whole))])
                await self._ended_within(fault, writer)
        for part in parts:
            writer.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            await writer.drain()
            log.forwarded += len(part)
            if len(parts) > 2:
                await asyncio.sleep(TRICKLE_S)

    async def _ended_within(self, fault: Fault, writer: asyncio.StreamWriter) -> None:
        await writer.drain()
        if fault.variant == "reset":
            await asyncio.sleep(POLL_S)  # what was written before is sent
            _reset(writer)
        raise _EndedError("cut")


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


def _header(head: bytes, name: bytes) -> bytes | None:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return None


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The chunks of a reply's body."""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
