"""Fetching the public files from a loopback server that misbehaves."""

import hashlib
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from artifact.__main__ import main
from artifact.data import fetch, parse, tables
from artifact.errors import TraceError

FILES = {f"owner/repo/{i:040x}/data/file.csv": f"a,b\n{i},{i}\n".encode() * 400 for i in range(6)}
FIRST = next(iter(FILES))


class Mirror(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, counts what was asked for, and spoils the answers a test asks it to."""

    asked: list[str]
    spoil: Callable[[str, bytes], bytes | int]

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.asked.append(name)
        answer = self.spoil(name, FILES.get(name, b""))
        if isinstance(answer, int):
            self.send_error(answer)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(FILES[name])))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Served:
    def __init__(self, folder: Path) -> None:
        self.cache, self.registry = folder / "cache", folder / "registry.txt"
        lines = [f"{name} {hashlib.sha256(content).hexdigest()}" for name, content in FILES.items()]
        self.registry.write_text("# a comment\n" + "\n".join(lines) + "\n")
        self.asked: list[str] = []
        self.spoil: Callable[[str, bytes], bytes | int] = lambda name, content: content

    def fetch(self, files: str = "*") -> list[Path]:
        return fetch.fetch(files, registry=self.registry, cache=self.cache, retries=0)

    def present(self) -> set[str]:
        return {p.relative_to(self.cache).as_posix() for p in self.cache.rglob("*") if p.is_file()}

    def answer(self, name: str, content: bytes) -> bytes | int:
        return self.spoil(name, content)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    state = Served(tmp_path)
    handler = type("Handler", (Mirror,), {"asked": state.asked, "spoil": staticmethod(state.answer)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv(fetch.MIRROR, f"http://127.0.0.1:{server.server_port}")
        yield state
        server.shutdown()
        thread.join()


def one_line(error: pytest.ExceptionInfo[TraceError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_fetches_once_and_verifies(served: Served) -> None:
    paths = served.fetch()
    assert [path.read_bytes() for path in paths] == list(FILES.values())
    assert sorted(served.asked) == sorted(FILES)
    assert served.fetch(FIRST) == paths[:1]
    assert len(served.asked) == len(FILES)


def test_an_interrupted_fetch_goes_on_where_it_stopped(served: Served) -> None:
    last = list(FILES)[-1]
    served.spoil = lambda name, content: 503 if name == last else content
    with pytest.raises(TraceError, match="HTTP 503"):
        served.fetch()
    assert last not in served.present()
    there = served.present()
    (served.cache / FIRST).write_bytes(b"half a fi")  # what a cut-off machine leaves
    there.discard(FIRST)
    served.asked.clear()
    served.spoil = lambda name, content: content
    served.fetch()
    assert set(served.asked) == set(FILES) - there
    assert served.present() == set(FILES)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda name, content: content[:-1] + b"X", "sha256 is not the pinned one"),
        (lambda name, content: content[:100], "no complete response"),
        (lambda name, content: 404, "HTTP 404"),
    ],
    ids=["corrupt", "short", "missing"],
)
def test_a_bad_answer_is_one_line_and_leaves_nothing(
    served: Served, spoil: Callable[..., bytes | int], says: str
) -> None:
    served.spoil = spoil
    with pytest.raises(TraceError) as caught:
        served.fetch(FIRST)
    one_line(caught, FIRST, says, "run the command again", fetch.MIRROR)
    assert served.present() == set()


def test_a_failed_try_is_tried_again(served: Served) -> None:
    served.spoil = lambda name, content: 500 if served.asked.count(name) == 1 else content
    paths = fetch.fetch(FIRST, registry=served.registry, cache=served.cache, retries=1)
    assert paths[0].read_bytes() == FILES[FIRST]


def test_a_dead_port_is_one_line(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as idle:
        idle.bind(("127.0.0.1", 0))
        monkeypatch.setenv(fetch.MIRROR, f"http://127.0.0.1:{idle.getsockname()[1]}/")
        with pytest.raises(TraceError) as caught:
            served.fetch(FIRST)
    one_line(caught, FIRST, "ConnectionError", "check the network")
    assert served.present() == set()


@pytest.mark.parametrize(
    "mirror",
    ["here", "ftp://host/", "http://", "http:///x", "http://h:99999/", "http://[", "http://a b/", "http://h/?q"],
)
def test_a_malformed_mirror_is_one_line(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetch.MIRROR, mirror)
    with pytest.raises(TraceError) as caught:
        fetch.address()
    one_line(caught, fetch.MIRROR, repr(mirror), "http://127.0.0.1:8000/")


def test_without_a_mirror_the_public_home_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(fetch.MIRROR, raising=False)
    assert fetch.address() == fetch.HOME


def test_an_unwritable_folder_is_one_line(served: Served) -> None:
    served.cache.write_text("a file where the folder should be")
    with pytest.raises(TraceError) as caught:
        served.fetch(FIRST)
    one_line(caught, "cannot write")


@pytest.mark.parametrize("command", [["fetch"], ["tables", "--out", "unused"]])
def test_commands_end_with_one_line(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def fail(*_: object, **__: object) -> None:
        raise TraceError("no such thing")

    for action, code, says in ((interrupt, 130, "interrupted"), (fail, 1, "no such thing")):
        monkeypatch.setattr(fetch, "fetch", action)
        monkeypatch.setattr(tables, "write", action)
        assert main(command) == code
        assert says in capsys.readouterr().err


def test_the_registry_pins_every_source() -> None:
    names = [line.split() for line in fetch.REGISTRY.read_text().splitlines() if not line.startswith("#")]
    assert all(len(sha) == 64 and len(name.split("/")[2]) == 40 for name, sha in names)
    claimed = [sum(fetch.fnmatchcase(name, files) for files, _ in parse.SOURCES.values()) for name, _ in names]
    assert claimed == [1] * len(names)
