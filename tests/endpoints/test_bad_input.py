"""What a user may get wrong, or find wrong: one typed error that names the endpoint, in time, nothing left running.

Arguments of `stream` itself are in test_stream, the real server's keys and contexts in test_models.
"""

import asyncio
import contextlib
import functools
import re
import socket
import threading
import time

import pytest

import disco_core as dc
from artifact.data.model import smollm2_path
from disco_core.endpoints import local_server
from disco_core.endpoints.llama_cpp import LlamaCppEndpoint
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from disco_core.endpoints.local_server import LocalServer
from disco_core.endpoints.openai import OpenAIEndpoint
from tests.helpers import scripts
from tests.helpers.loopback import (
    FACTS,
    KEY,
    collect,
    deaf,
    events,
    free_port,
    hanging,
    piece,
    prefix,
    reply,
    serving,
    speaking,
)
from tests.helpers.loopback import chunk as spoken
from tests.helpers.replay import ReplayEndpoint

DEADLINE_S = 0.5
LONG_S = 20.0  # a deadline that nothing here should need
LATE_S = 4.0  # for a deadline on a slow and busy machine; httpx would give up after 5 s by itself


def native(url, **options):
    return LlamaServerEndpoint(url, **{"name": "there", "api_key": KEY, "deadline_s": DEADLINE_S} | options)


def openai(url, **options):
    return OpenAIEndpoint("m", base_url=url, **{"name": "there", "api_key": KEY, "deadline_s": DEADLINE_S} | options)


def failure_of(home, url):
    """How a first answer fails, be it while the endpoint is made or later; it took no longer than it may."""

    async def go():
        began = time.monotonic()
        try:
            async with home(url) as endpoint:
                tokens, failure = await collect(endpoint, prefix())
        except dc.EndpointError as refused:
            tokens, failure = [], refused
        assert time.monotonic() - began < LATE_S
        assert tokens == []
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return failure

    failure = asyncio.run(go())
    assert str(failure).startswith("there: ")
    assert len(str(failure)) < 400
    assert "\n" not in str(failure)
    return failure


# --- servers

TLS_ALERT = b"\x15\x03\x03\x00\x02\x02\x46"
html = {"answer": lambda h: reply(h, b"<html>", kind="text/html")}
wrong_key = {"answer": lambda h: reply(h, {"error": {"message": "invalid key"}}, 401)}
no_model = {"answer": lambda h: reply(h, {"error": {"message": "no model m"}}, 404)}
silent = {"answer": lambda h: time.sleep(LONG_S)}
dropped = {"answer": lambda h: setattr(h, "close_connection", True)}
over_context = {"answer": lambda h: reply(h, {"error": {"message": "maximum context length is 64"}}, 400)}


@contextlib.contextmanager
def nowhere():
    """A host that has no address, also where nobody answers such a question, or takes long to."""

    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", unknown)
        yield "no-such-host.invalid"


@pytest.mark.parametrize("home", [native, openai])
@pytest.mark.parametrize(
    ("there", "scheme", "kind", "word"),
    [
        (nowhere, "http", dc.RefusedError, "cannot be reached at http://.*Name or service not known"),
        (contextlib.nullcontext("127.0.0.1:0001"), "http", dc.RefusedError, "reached at http://127.0.0.1:0001"),
        (deaf, "http", dc.RefusedError, "reached at http.*: no connection within its deadline"),
        (lambda: speaking(b""), "http", dc.StalledError, "sent nothing within its deadline"),
        (lambda: speaking(b""), "https", dc.RefusedError, "reached at http.*: no connection within its deadline"),
        (lambda: speaking(b"220 mail.example ESMTP\r\n\r\n"), "http", dc.ProtocolError, "does not speak HTTP"),
        (lambda: speaking(TLS_ALERT + b"\r\n"), "http", dc.ProtocolError, "does not speak HTTP"),
        (lambda: speaking(b"", echo=True), "http", dc.ProtocolError, "does not speak HTTP"),
        (lambda: speaking(b"HTTP/1.1 200 OK\r\n", echo=True), "http", dc.ProtocolError, "does not speak HTTP"),
        (html, "https", dc.RefusedError, "TLS failed"),
        (html, "http", dc.ProtocolError, ""),
        (wrong_key, "http", dc.RefusedError, "401: the key is wrong or missing: invalid key"),
        (no_model, "http", dc.RefusedError, "404 at http://.*: no such address or model: no model m"),
        (over_context, "http", dc.RefusedError, "400: maximum context length is 64"),
        (silent, "http", dc.StalledError, "sent nothing within its deadline"),
        (dropped, "http", dc.CutError, "the connection broke"),
    ],
)
def test_a_wrong_server_is_one_typed_error(home, there, scheme, kind, word):
    timed = functools.partial(home, deadline_s=DEADLINE_S if "deadline" in word else LONG_S)
    with serving(**there) if isinstance(there, dict) else there() if callable(there) else there as found:
        failure = failure_of(timed, f"{scheme}://{found.removeprefix('http://')}")
    assert type(failure) is kind
    assert re.search(word, str(failure))
    assert KEY not in str(failure)


@pytest.mark.parametrize("home", [native, openai])
@pytest.mark.parametrize(
    "url",
    [None, "", 8080, "127.0.0.1:8080", "localhost", "ftp://host", "http://", "http://[::1", "http://h:99999",
     "http://h:port", " http://h", "http://h ", "http://h:8080/v1 ", "http://h/a b", "http://h\n"],
)  # fmt: skip
def test_an_address_that_is_none_is_named(home, url, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "nothing")
    with pytest.raises(dc.InputError, match="url must be") as caught:
        home(url)
    assert repr(url or ("nothing" if home is openai else url)) in str(caught.value)


@pytest.mark.parametrize("home", [native, openai])
@pytest.mark.parametrize(
    "url",
    ["http://user:{}@host", "http://{}@host", "user:{}@host", "http://host/?key={}", "http://user:{}@host:port",
     "http://host:port/?key={}"],
)  # fmt: skip
def test_an_address_with_a_key_is_refused_without_showing_it(home, url):
    with pytest.raises(dc.InputError, match=r"there: url must be .* without a key") as caught:
        home(url.format("sk-in-the-address"))
    assert "sk-in-the-address" not in str(caught.value)


@pytest.mark.parametrize("home", [native, openai])
@pytest.mark.parametrize("bad", [{"temperature": -1}, {"deadline_s": 0}, {"deadline_s": None}])
def test_bad_arguments_of_an_endpoint_are_named(home, bad):
    with pytest.raises(dc.InputError, match=next(iter(bad))):
        home(f"http://127.0.0.1:{free_port()}", **bad)


@pytest.mark.parametrize("home", [native, openai])
@pytest.mark.parametrize(("key", "word"), [("a b", "printable ASCII"), (523, "text.* int"), (b"523", "text.* bytes")])
def test_a_key_that_is_none_is_refused_without_showing_it(home, key, word):
    with pytest.raises(dc.InputError, match=f"there: the key must be .*{word}") as caught:
        home(f"http://127.0.0.1:{free_port()}", api_key=key)
    assert "523" not in str(caught.value)


def test_an_openai_endpoint_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(dc.RefusedError, match="OPENAI_API_KEY"):
        OpenAIEndpoint("m")
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")  # as out of a file
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{free_port()}/v1")
    _, failure = asyncio.run(collect(OpenAIEndpoint("m"), prefix()))
    assert "openai:m: it cannot be reached" in str(failure)
    for bad in (
        {"continuation": "magic"},
        {"template": "no place"},
        {"template": 5},
        {"options": 5},
        {"count_tokens": 5},
        {"context": "long"},
    ):
        with pytest.raises(dc.InputError, match=next(iter(bad))):
            OpenAIEndpoint("m", **bad)
    with pytest.raises(dc.InputError, match="model"):
        OpenAIEndpoint(None)


@pytest.mark.parametrize(
    ("option", "where"),
    [("max_tokens", "stream.*max_tokens"), ("max_completion_tokens", "stream.*max_tokens"), ("n_predict", "stream"),
     ("stop", "endpoint's stop"), ("seed", "stream.*seed"), ("messages", "prompt"), ("prompt", "prompt"),
     ("stream", "always streams"), ("model", "endpoint's model")],
)  # fmt: skip
def test_an_option_that_is_set_elsewhere_says_where(option, where):
    with pytest.raises(dc.InputError, match=f"there: options must be without {option}, which is set by .*{where}"):
        openai("http://127.0.0.1:1", options={"temperature": None, option: 3})
    assert openai("http://127.0.0.1:1", options={"temperature": None, option: None}).options[option] is None


def test_a_server_that_answers_questions_without_an_end_is_left():
    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b" " * (1 << 16))

    def dribbling(handler):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(30):
                handler.wfile.write(b" ")
                time.sleep(0.1)

    for answer in (endless, dribbling):
        with serving(answer) as url:
            assert "does not end" in str(failure_of(native, url))


# --- servers that hang in the middle


@pytest.mark.parametrize("home", [native, openai])
def test_a_server_that_hangs_delays_neither_the_next_token_nor_for_long_the_answers_end(home):
    """The server sends a token and then nothing any more, nor the end of a request it was asked to stop."""
    over = threading.Event()
    first = piece("a", [97], 1) if home is native else spoken("a")
    facts = FACTS | {"/slots": lambda _: over.wait(30) and []}
    device = ReplayEndpoint(0.01, [0.001], 5, name="here")

    async def go(url):
        options = {"deadline_s": 20} | ({"confirm_s": 2.0} if home is native else {})
        loop = asyncio.get_running_loop()
        async with home(url, **options) as server:
            ends = {"server": server, "device": device}
            live = dc.stream("hi", plan=dc.plan_server_only(), **ends, max_tokens=5, wait=False, stall_s=0.3)
            began, at = loop.time(), []
            async for _ in live:
                at.append(loop.time() - began)
            return live.record, at, loop.time() - began, server

    with serving(hanging(first, until=over), facts) as url:
        record, at, ended_s, server = asyncio.run(go(url))
        over.set()
    assert [token.source for token in record.tokens] == [dc.End.SERVER] + [dc.End.DEVICE] * 4
    assert str(record.failures[0]) == "there: sent no token for 0.3 s"
    assert 0.3 <= at[1] - at[0] < 2.0  # it does not wait for the endpoint it left
    assert ended_s < 8.0  # nor does the answer's end for longer than that takes to be given up
    if home is native:
        assert (server.unconfirmed, record.unconfirmed) == (1, [1, 0])


def test_a_server_that_hangs_is_asked_once_how_long_a_prompt_is():
    over, hung, questions = threading.Event(), threading.Event(), []

    def tokenize(asked):
        if hung.is_set():
            questions.append(asked)
            over.wait(5)
        return FACTS["/tokenize"](asked)

    with serving(events(), FACTS | {"/tokenize": tokenize}) as url:
        endpoint = native(url)
        hung.set()
        began = time.monotonic()
        assert endpoint.count("12345678") == 2
        assert time.monotonic() - began < 1.9  # a question without a deadline of the endpoint's takes 2 s
        assert {endpoint.count(f"{i} 123") for i in range(10, 60)} == {2}
        assert len(questions) == 1
        over.set()
        time.sleep(DEADLINE_S)
        assert endpoint.count("12345678") == 8
    assert endpoint.estimated == 51


# --- a model file, and a local server


@pytest.fixture
def started(monkeypatch):
    """Processes that a LocalServer started."""
    found, start = [], local_server._start
    monkeypatch.setattr(local_server, "_start", lambda said: found.append(start(said)) or found[-1])
    yield found
    assert all(process.poll() is not None for process in found)


@pytest.mark.parametrize("home", [LlamaCppEndpoint, LocalServer])
def test_a_file_that_is_no_model_is_named(home, tmp_path, started):
    text, cut = tmp_path / "text.gguf", tmp_path / "cut.gguf"
    text.write_bytes(b"hello there")
    cut.write_bytes(b"GGUF\x03\0\0\0")
    missing = tmp_path / "none.gguf"
    for path, word in ((missing, "No such file"), (tmp_path, "directory"), (text, "begins with"), (None, "NoneType")):
        with pytest.raises(dc.InputError, match=f"^here: model_path must be a GGUF file.*{word}"):
            home(path, name="here")
    assert started == []
    with pytest.raises(dc.DiscoError, match=r"^here: .*cut\.gguf"):
        home(cut, name="here")
    assert "here" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.slow
@pytest.mark.parametrize("n_ctx", [8193, 10**6])
def test_a_context_that_the_model_does_not_have_is_refused_before_it_is_allocated(n_ctx, monkeypatch):
    llama_cpp = pytest.importorskip("llama_cpp")
    load = llama_cpp.Llama

    def checked(*path, **options):
        assert options.get("vocab_only")
        return load(*path, **options)

    monkeypatch.setattr(llama_cpp, "Llama", checked)
    with pytest.raises(dc.InputError, match=f"^here: n_ctx must be at most 8192 for .*gguf, got {n_ctx}$"):
        LlamaCppEndpoint(smollm2_path(), n_ctx=n_ctx, name="here")


def test_a_port_in_use_is_named(started):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(dc.RefusedError, match=f"local server: port {port} .* in use"):
            LocalServer(smollm2_path(), port=port)
    for bad in (70000, -1, 80.5, "80"):
        with pytest.raises(dc.InputError, match="port"):
            LocalServer(smollm2_path(), port=bad)
    assert started == []


@pytest.mark.slow
def test_a_port_that_is_taken_at_the_last_moment_is_named(started, monkeypatch):
    monkeypatch.setattr(local_server, "_claimed", lambda _, port: port)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(dc.RefusedError, match=f"^local server: it did not start: .* on port {port}"):
            LocalServer(smollm2_path(), port=port)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "kind", "deadline_s", "word"),
    [
        ("raise ImportError", dc.RefusedError, 60, "needs the package xllamacpp"),
        ("import os; os._exit(3)", dc.RefusedError, 60, "did not start: without a message"),
        ("import time; time.sleep(60)", dc.StalledError, 1, "did not start within its deadline"),
        ("CommonParams = None", dc.RefusedError, 60, "did not start: TypeError"),
        # here the interpreter has to come up within the deadline
        ("ADDRESS = 'http://127.0.0.1:{dead}'", dc.StalledError, 4, "was not healthy within its deadline"),
        ("ADDRESS = 'http://{mute}'", dc.StalledError, 4, "was not healthy within its deadline"),
    ],
)
def test_a_server_that_does_not_come_up_is_one_typed_error(
    library, kind, deadline_s, word, started, tmp_path, monkeypatch
):
    """With another library in the place of xllamacpp; the process is gone afterwards."""
    with speaking(b"") as mute:
        code = scripts.text("fake_xllamacpp.py") + "\n" + library.format(dead=free_port(), mute=mute) + "\n"
        (tmp_path / "xllamacpp.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        began = time.monotonic()
        with pytest.raises(dc.EndpointError, match=f"^local server: it {word}|^local server: .*{word}") as caught:
            LocalServer(smollm2_path(), api_key=KEY, deadline_s=deadline_s)
    assert type(caught.value) is kind
    assert KEY not in str(caught.value)
    assert time.monotonic() - began < min(deadline_s, 30) + LATE_S  # one that died is not waited for
    assert len(started) == 1


@pytest.mark.slow
def test_a_server_that_is_too_slow_to_start_is_stopped(started):
    with pytest.raises(dc.StalledError, match=r"local server: .* deadline"):
        LocalServer(smollm2_path(), deadline_s=0.05)
