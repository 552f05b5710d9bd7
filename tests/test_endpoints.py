"""Live endpoints: on small loopback servers that misbehave as told, and on the real model in both its homes."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from disco_core.artifact.model import build, smollm2_path
from disco_core.endpoints.base import Prefix, Token
from disco_core.endpoints.llama_cpp import LlamaCppEndpoint
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from disco_core.endpoints.local_server import LocalServer
from disco_core.endpoints.openai import OpenAIEndpoint
from disco_core.endpoints.replay import ReplayEndpoint
from disco_core.endpoints.wire import Events
from disco_core.stream import stream

KEY = "sk-loopback-0123456789"
ROOT = Path(dc.__file__).parents[1]


# --- loopback servers


@contextlib.contextmanager
def serving(answer, facts=None):
    """A server on a free port; `answer(handler)` writes whatever it likes to a POST that is not in `facts`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.asked = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"null")
            known = (facts or {}).get(self.path)
            if known is None:
                answer(self)
            else:
                reply(self, known(self.asked) if callable(known) else known)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def speaking(banner):
    """A port that says something that is no HTTP to whoever connects, or nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections = []

        def greet():
            with contextlib.suppress(OSError):
                while True:
                    connections.append(listener.accept()[0])
                    connections[-1].sendall(banner)

        threading.Thread(target=greet, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.close()


def reply(handler, body, status=200, kind="application/json", **headers):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in {"Content-Type": kind, "Content-Length": str(len(raw)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(raw)


def events(*sent, cut=None):
    """An answer of server-sent events, in pieces of `cut` bytes."""
    raw = b"".join(
        b"data: " + (one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n\n" for one in sent
    )

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        step = cut or len(raw) or 1
        for piece in (raw[i : i + step] for i in range(0, len(raw), step)):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")

    return answer


FACTS = {
    "/v1/models": {"data": [{"meta": {"n_vocab": 1000}}]},
    "/props": {"default_generation_settings": {"n_ctx": 64}},
    "/tokenize": lambda asked: {"tokens": list(asked["content"].encode())},
    "/detokenize": lambda asked: {"content": bytes(asked["tokens"]).decode(errors="replace")},
    "/slots": lambda _: [],
}


def piece(text, ids, predicted, stop=None):
    return {
        "content": text,
        "tokens": ids,
        "tokens_predicted": predicted,
        "stop": stop is not None,
        **({"stop_type": stop} if stop else {}),
    }


def prefix(prompt="hi", generated=(), max_tokens=8):
    return Prefix(prompt, tuple(generated), max_tokens)


async def collect(endpoint, asked):
    """Tokens, and the failure that ended them."""
    tokens = []
    try:
        async for token in endpoint.generate(asked):
            tokens.append(token)
    except dc.EndpointError as failure:
        return tokens, failure
    return tokens, None


def through_server(answer, asked=None, **options):
    """What LlamaServerEndpoint makes of an answer, with its connections closed."""

    async def go(url):
        async with LlamaServerEndpoint(url, name="there", **options) as endpoint:
            return *await collect(endpoint, asked or prefix()), endpoint

    with serving(answer, FACTS) as url:
        return asyncio.run(go(url))


# --- events out of bytes


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5), st.sampled_from([b"\n", b"\r\n"]), st.data())
def test_events_do_not_depend_on_where_bytes_are_cut(texts, newline, data):
    sent = [json.dumps(text, ensure_ascii=False) for text in texts]
    raw = b": a comment" + newline + b"".join(b"data: " + one.encode() + newline * 2 for one in sent)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=8)) | {0, len(raw)})
    reader = Events()
    found = [event for a, b in itertools.pairwise(cuts) for event in reader.feed(raw[a:b])]
    assert [json.loads(event) for event in found] == texts


def test_a_line_without_an_end_is_not_kept_for_ever():
    reader = Events()
    with pytest.raises(ValueError, match="without an end"):
        [list(reader.feed(b"x" * 100_000)) for _ in range(100)]


# --- the native server's endpoint


@pytest.mark.parametrize("cut", [1, 7, None])
def test_ids_of_held_back_tokens_are_found_and_the_end_of_turn_is_no_token(cut):
    seedling = list("🌱".encode())
    answer = events(
        {"content": "", "tokens": [0], "tokens_predicted": 0, "stop": False, "prompt_progress": {"total": 2}},
        piece("a", [97], 1),
        piece("🌱", seedling[-1:], 5),
        piece("", [2], 6),
        piece("", [], 6, "eos"),
        cut=cut,
    )
    tokens, failure, _ = through_server(answer)
    assert failure is None
    assert [token.id for token in tokens] == [97, *seedling]
    assert [token.text for token in tokens] == ["a", "", "", "", "🌱"]
    assert [token.index for token in tokens] == list(range(5))


def test_a_budget_that_ends_within_a_character_keeps_the_count():
    tokens, failure, _ = through_server(events(piece("a", [97], 1), piece("", [], 3, "limit")), prefix(max_tokens=3))
    assert failure is None
    assert [(token.text, token.id) for token in tokens] == [("a", 97), ("", None), ("", None)]


def test_a_character_begun_by_the_other_end_is_completed():
    first, *rest = "🌱".encode()
    answer = events(
        *(piece("\ufffd", [id], i + 1) for i, id in enumerate(rest)), piece("!", [33], 4), piece("", [], 4, "eos")
    )
    tokens, failure, _ = through_server(answer, prefix(generated=[Token(0, "", first)]))
    assert failure is None
    assert [token.text for token in tokens] == ["", "", "🌱", "!"]
    assert [token.index for token in tokens] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("generated", "sent"),
    [
        ([Token(0, "x", 7), Token(1, "y", 8)], [*b"hi", 7, 8]),
        ([Token(0, "x"), Token(1, "y", 8)], list(b"hixy")),
    ],
)
def test_ids_go_as_ids_and_text_as_text(generated, sent):
    asked = []

    def answer(handler):
        asked.append(handler.asked)
        events(piece("", [], 0, "eos"))(handler)

    _, failure, _ = through_server(answer, prefix(generated=generated))
    assert failure is None
    assert asked[0]["prompt"] == sent
    assert asked[0]["n_predict"] == 8
    assert asked[0]["cache_prompt"] is False


@pytest.mark.parametrize(
    ("answer", "kind", "word"),
    [
        (events(piece("a", [97], 1)), dc.CutError, "without a stop reason"),
        (events(piece("a", [97], 1), b"[DONE]"), dc.CutError, "without a stop reason"),
        (events(piece("a", [97], 1), b"{not json"), dc.ProtocolError, "nobody can read"),
        (events(piece("a", [97], 1), b'"\xff"'), dc.ProtocolError, "nobody can read"),
        (events(piece("a", [97], 1), b"[1]"), dc.ProtocolError, "nobody can read"),
        (events(piece("a", [97], 1), {"what": 1}), dc.ProtocolError, "nobody can read"),
        (events(piece("a", [97], 1), {"error": {"message": "no slot"}}), dc.CutError, "no slot"),
        (events(piece("a", [97], 1), piece("", [], 1, "limit")), dc.CutError, "context is full"),
        (events(piece("a", [97], 1), piece("", [], 1, "none")), dc.CutError, "no known reason"),
        (lambda h: reply(h, b"<html>", kind="text/html"), dc.ProtocolError, "text/html"),
        (lambda h: reply(h, {}, 404), dc.RefusedError, "404"),
        (lambda h: reply(h, {"error": {"message": "busy"}}, 503), dc.RefusedError, "503: busy"),
        (lambda h: reply(h, {}, 429, Retry_After="7"), dc.RefusedError, "Retry-After 7 s"),
    ],
)
def test_an_answer_that_is_not_one_is_a_typed_failure(answer, kind, word):
    tokens, failure, endpoint = through_server(answer)
    assert type(failure) is kind
    assert str(failure).startswith("there: ")
    assert word in str(failure)
    assert len(tokens) <= 1
    assert endpoint.stale_retries == 0


def test_a_connection_that_breaks_in_the_middle_is_a_cut():
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"data: " + json.dumps(piece("a", [97], 1)).encode() + b"\n\n")
        handler.close_connection = True

    tokens, failure, _ = through_server(answer)
    assert len(tokens) == 1
    assert type(failure) is dc.CutError


def test_a_stale_connection_is_tried_again_once_and_is_no_failure():
    served = []

    def answer(handler):
        count = served.count(handler.client_address)
        served.append(handler.client_address)
        if count:  # a connection that was used before is dropped without a byte
            handler.close_connection = True
        else:
            events(piece("a", [97], 1), piece("", [], 1, "eos"))(handler)

    async def go(url):
        async with LlamaServerEndpoint(url) as endpoint:
            found = [await collect(endpoint, prefix([5])) for _ in range(3)]
            return found, endpoint.stale_retries

    with serving(answer, FACTS) as url:
        found, retries = asyncio.run(go(url))
    assert [failure for _, failure in found] == [None] * 3
    assert retries >= 1


def test_a_new_connection_that_is_dropped_is_a_failure():
    def answer(handler):
        handler.close_connection = True

    _, failure, endpoint = through_server(answer, prefix([5]))
    assert type(failure) is dc.CutError
    assert endpoint.stale_retries == 0


def test_closing_waits_until_the_server_says_that_the_slot_is_free():
    polls = []

    def slots(_):
        polls.append(1)
        return [{"is_processing": len(polls) < 5, "params": {"seed": seeds[-1]}}]

    seeds = []

    def answer(handler):
        seeds.append(handler.asked["seed"])
        events(*(piece("a", [97], i + 1) for i in range(8)))(handler)

    async def go(url):
        async with LlamaServerEndpoint(url) as endpoint:
            tokens = endpoint.generate(prefix())
            await anext(tokens)
            await tokens.aclose()
            return endpoint.unconfirmed

    with serving(answer, FACTS | {"/slots": slots}) as url:
        assert asyncio.run(go(url)) == 0
    assert len(polls) == 5


def test_a_server_that_never_answers_fails_within_its_deadline():
    began = time.monotonic()
    _, failure, _ = through_server(lambda h: time.sleep(1.5), deadline_s=0.3)
    assert type(failure) is dc.StalledError
    with speaking(b"") as address, pytest.raises(dc.StalledError, match=r"there: .*deadline"):
        LlamaServerEndpoint(f"http://{address}", name="there", deadline_s=0.3)
    assert time.monotonic() - began < 3


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def test_what_cannot_be_reached_or_is_no_such_server_fails_at_once():
    def endpoint(url):
        return LlamaServerEndpoint(url, name="there", deadline_s=2)

    with pytest.raises(dc.RefusedError, match="there: it cannot be reached"):
        endpoint(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(dc.RefusedError, match="there: it cannot be reached"):
        endpoint("127.0.0.1:8080")
    with pytest.raises(dc.RefusedError, match="there: it cannot be reached"):
        endpoint("http://no-such-host.invalid")
    with pytest.raises(dc.InputError, match="url"):
        endpoint(None)
    with speaking(b"220 mail.example ESMTP\r\n\r\n") as address, pytest.raises(dc.ProtocolError, match="speak HTTP"):
        endpoint(f"http://{address}")
    with serving(lambda h: reply(h, b"<html>", kind="text/html")) as url:
        with pytest.raises(dc.RefusedError, match="TLS"):
            endpoint(url.replace("http", "https"))
        with pytest.raises(dc.ProtocolError, match="llama"):
            endpoint(url)


def test_a_server_that_is_gone_does_not_keep_the_other_end_from_answering():
    with serving(events(), FACTS) as url:
        server = LlamaServerEndpoint(url, name="there")
    device = ReplayEndpoint(0.01, [0.001], 4, vocabulary=server.vocabulary)

    async def go():
        async with server:
            live = stream("hi", plan=dc.plan_server_only(), server=server, device=device, max_tokens=4, wait=False)
            return [token.id async for token in live], live.record

    tokens, record = asyncio.run(go())
    assert tokens == [0, 1, 2, 3]
    assert "there: it cannot be reached" in str(record.failures[0])
    assert server.estimated > 0


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        (prefix([5] * 60), "68 tokens of context, it has 64"),
        (prefix([5], max_tokens=0), "max_tokens"),
        (prefix([5], max_tokens=-3), "max_tokens"),
        (prefix(""), "empty"),
        (prefix([1000]), "999"),
        (prefix([-1]), "999"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_sent(asked, word):
    sent = []
    _, failure, _ = through_server(lambda h: sent.append(1), asked)
    assert type(failure) is dc.RefusedError
    assert word in str(failure)
    assert not sent


# --- OpenAI's API


def chunk(text=None, reason=None, usage=None, tokens=None, role=None, completions=False):
    """A chunk of a chat completion, or of a raw one."""
    logprobs = {"content": [{"token": one, "logprob": 0.0, "top_logprobs": []} for one in tokens]} if tokens else None
    delta = {key: value for key, value in (("role", role), ("content", text)) if value is not None}
    choice = {"index": 0, "finish_reason": reason, "logprobs": logprobs}
    choice |= {"text": text or ""} if completions else {"delta": delta}
    billed = usage and {"prompt_tokens": 9, "completion_tokens": usage, "total_tokens": 9 + usage}
    return {"id": "1", "object": "chunk", "created": 0, "model": "m", "choices": [choice], "usage": billed}


def through_openai(answer, asked=None, **options):
    async def go(url):
        async with OpenAIEndpoint("m", base_url=f"{url}/v1", name="there", **{"api_key": KEY} | options) as endpoint:
            return *await collect(endpoint, asked or prefix()), endpoint

    with serving(answer) as url:
        return asyncio.run(go(url))


def test_a_role_is_no_token_and_a_chunk_of_several_tokens_is_several():
    answer = events(
        chunk("", role="assistant"),
        chunk("Hello"),
        chunk(" big world", tokens=[" big", " world"]),
        chunk("!!!", usage=6),
        chunk(reason="stop", usage=6),
        b"[DONE]",
        cut=11,
    )
    tokens, failure, endpoint = through_openai(answer)
    assert failure is None
    assert [token.text for token in tokens] == ["Hello", " big", " world", "", "", "!!!"]
    assert [token.index for token in tokens] == list(range(6))
    assert endpoint.usage == [(9, 6)]


@pytest.mark.parametrize(
    ("continuation", "path", "expected"),
    [
        ("completions", "/v1/completions", {"prompt": "<u>hi<a>One, two"}),
        ("prefix", "/v1/chat/completions", {"prefix": True}),
        ("continue_final_message", "/v1/chat/completions", {"continue_final_message": True}),
    ],
)
def test_the_open_turn_goes_as_the_server_wants_it(continuation, path, expected):
    asked = []

    def answer(handler):
        asked.append((handler.path, handler.asked))
        raw = continuation == "completions"
        events(chunk(" three", completions=raw), chunk(reason="stop", completions=raw), b"[DONE]")(handler)

    generated = [Token(0, "One", 3), Token(1, ", two")]
    options = {"continuation": continuation, "template": "<u>{prompt}<a>"}
    tokens, failure, _ = through_openai(answer, prefix("<u>hi<a>", generated), **options)
    assert failure is None
    assert tokens == [Token(2, " three")]
    assert asked[0][0] == path
    body = asked[0][1]
    if continuation != "completions":
        assert body["messages"][0] == {"role": "user", "content": "hi"}
        assert body["messages"][1]["content"] == "One, two"
        body |= body["messages"][1]
    assert expected.items() <= body.items()


@pytest.mark.parametrize(
    ("answer", "kind", "word"),
    [
        (events(chunk("a")), dc.CutError, "without a finish reason"),
        (events(chunk("a"), b"[DONE]"), dc.CutError, "without a finish reason"),
        (events(chunk("a", reason="content_filter")), dc.CutError, "content_filter"),
        (events(chunk("a"), b"{not json"), dc.ProtocolError, "nobody can read"),
        (events(chunk("a"), b"[1]"), dc.ProtocolError, "nobody can read"),
        (events(chunk("a"), {"error": {"message": "overloaded"}}), dc.CutError, "overloaded"),
        (lambda h: reply(h, b"<html>", kind="text/html"), dc.ProtocolError, "text/html"),
        (lambda h: reply(h, {"error": {"message": f"bad key {KEY}"}}, 401), dc.RefusedError, "401: the key is wrong"),
        (lambda h: reply(h, {"error": {"message": "no model m"}}, 404), dc.RefusedError, "no model m"),
        (lambda h: reply(h, {}, 429, Retry_After="7"), dc.RefusedError, "Retry-After 7 s"),
        (lambda h: setattr(h, "close_connection", True), dc.CutError, "broke"),
        (lambda h: time.sleep(1.5), dc.StalledError, "deadline"),
    ],
)
def test_a_bad_answer_of_an_openai_server_is_a_typed_failure_without_the_key(answer, kind, word):
    tokens, failure, endpoint = through_openai(answer, deadline_s=0.5)
    assert type(failure) is kind
    assert str(failure).startswith("there: ")
    assert word in str(failure)
    assert len(tokens) <= 1
    told = "".join(traceback.format_exception(failure)) + repr(failure) + repr(endpoint) + repr(failure.__dict__)
    assert KEY not in told


def test_an_openai_endpoint_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(dc.RefusedError, match="OPENAI_API_KEY"):
        OpenAIEndpoint("m")
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")  # as out of a file
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{free_port()}/v1")
    _, failure = asyncio.run(collect(OpenAIEndpoint("m"), prefix()))
    assert "cannot be reached" in str(failure)
    with pytest.raises(dc.InputError, match="printable") as caught:
        OpenAIEndpoint("m", api_key="sk-very secret")
    assert "secret" not in str(caught.value)
    for bad in ({"continuation": "magic"}, {"template": "no place"}, {"temperature": -1}, {"deadline_s": 0}):
        with pytest.raises(dc.InputError, match=next(iter(bad))):
            OpenAIEndpoint("m", **bad)


@pytest.mark.parametrize(
    ("asked", "options", "word"),
    [
        (prefix(generated=[Token(0, "x")]), {}, "open assistant turn"),
        (prefix([1, 2]), {}, "must be a text"),
        (prefix(""), {}, "must be a text"),
        (prefix(max_tokens=0), {}, "max_tokens"),
        (prefix("x" * 400), {"context": 64}, "108 tokens of context, it has 64"),
        (prefix("hi"), {"template": "<u>{prompt}<a>"}, "template"),
    ],
)
def test_what_an_openai_server_cannot_do_is_refused_before_it_is_sent(asked, options, word):
    sent = []
    _, failure, _ = through_openai(lambda h: sent.append(1), asked, **options)
    assert type(failure) is dc.RefusedError
    assert word in str(failure)
    assert not sent


# --- a model file, and a server of our own


@pytest.mark.parametrize("home", [LlamaCppEndpoint, LocalServer])
def test_a_file_that_is_no_model_is_named(home, tmp_path):
    text, cut = tmp_path / "text.gguf", tmp_path / "cut.gguf"
    text.write_bytes(b"hello there")
    cut.write_bytes(b"GGUF\x03\0\0\0")
    for path, word in ((tmp_path / "none.gguf", "No such file"), (tmp_path, "directory"), (text, "begins with")):
        with pytest.raises(dc.InputError, match=word):
            home(path)
    with pytest.raises(dc.DiscoError, match=r"cut\.gguf"):
        home(cut)


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(dc.RefusedError, match=f"local server: port {port} .* in use"):
            LocalServer(smollm2_path(), port=port)
    with pytest.raises(dc.InputError, match="port"):
        LocalServer(smollm2_path(), port=70000)


@pytest.mark.slow
def test_a_server_that_is_too_slow_to_start_is_stopped():
    with pytest.raises(dc.StalledError, match=r"local server: .* deadline"):
        LocalServer(smollm2_path(), deadline_s=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_server_does_not_outlive_its_parent(how):
    code = (
        "import time; from disco_core.artifact.model import smollm2_path\n"
        "from disco_core.endpoints.local_server import LocalServer\n"
        "with LocalServer(smollm2_path()) as server: print(server.pid, flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    with parent:
        pid = int(parent.stdout.readline())
        parent.send_signal(how)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# --- the real model


@pytest.fixture(scope="module")
def server():
    with LocalServer(smollm2_path(), api_key=KEY, n_ctx=1024) as running:
        yield running


@pytest.fixture(scope="module")
def device():
    with LlamaCppEndpoint(smollm2_path(), n_ctx=1024, name="device") as endpoint:
        yield endpoint


@pytest.fixture
def there(server):
    return LlamaServerEndpoint(server.url, api_key=KEY, name="server")


GARDEN = build("Write two sentences about a garden.")
EMOJI = build("Write the emoji 🙂 three times and say hi.")
LONG = build("Tell me more about the garden. " * 120)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [GARDEN, EMOJI])
def test_both_homes_of_the_model_speak_one_vocabulary_and_continue_exactly(device, there, prompt):
    assert device.vocabulary == there.vocabulary
    assert device.count(prompt) == there.count(prompt)

    async def go():
        async with there:
            for source, target in ((device, there), (there, device)):
                head, failure = await collect(source, prefix(prompt, max_tokens=5))
                assert failure is None
                assert len(head) == 5
                twice = [await collect(target, prefix(prompt, head, 6)) for _ in range(2)]
                assert twice[0] == twice[1]
                tail, failure = twice[0]
                assert failure is None
                assert [token.index for token in tail] == list(range(5, 5 + len(tail)))
                ids = [token.id for token in [*head, *tail]]
                if None not in ids:  # the server keeps the ids of a character that its budget cut off
                    text = device._llama.detokenize(ids).decode(errors="ignore")
                    assert "".join(token.text for token in [*head, *tail]) == text

    asyncio.run(go())


@pytest.mark.slow
def test_the_end_of_the_turn_is_no_token(device, there):
    async def go():
        async with there:
            return [await collect(end, prefix(build("Say hi."), max_tokens=80)) for end in (device, there)]

    for tokens, failure in asyncio.run(go()):
        assert failure is None
        assert 0 < len(tokens) < 80
        assert "<|im_end|>" not in "".join(token.text for token in tokens)


@pytest.mark.slow
def test_a_hand_over_between_real_ends_is_exact(device, there):
    """A stream that moves from the device to the server: the server's tokens are those of a direct call."""
    rule = dc.MigrationRule(
        dc.CostModel(0.0, 0.0, 0.0, 1e-6),
        dc.LengthDistribution([60], [1]),
        dc.TTFTDistribution([0.2]),
        dc.DeviceProfile(200.0, 100.0),
    )

    async def go():
        async with there:
            live = stream(
                GARDEN, plan=dc.plan_device_only(), server=there, device=device, rule=rule, max_tokens=20, wait=False
            )
            tokens = [token async for token in live]
            at = live.record.migrated_at
            generated = [Token(token.index, token.text, token.id) for token in tokens]
            return live.record, generated, await collect(there, prefix(GARDEN, generated[:at], 20 - at))

    record, generated, (direct, failure) = asyncio.run(go())
    assert failure is None
    assert record.complete
    assert record.failures == []
    assert 0 < record.migrated_at < 20
    assert generated[record.migrated_at :] == direct


@pytest.mark.slow
def test_a_prefill_on_the_device_is_cancelled_within_20_ms(device):
    async def go():
        taken = []
        for i in range(7):
            tokens = device.generate(prefix(LONG, max_tokens=50))
            first = asyncio.ensure_future(anext(tokens))
            await asyncio.sleep(0.1 + 0.05 * i)
            assert not first.done()
            began = time.perf_counter()
            first.cancel()
            await asyncio.wait([first])
            taken.append(time.perf_counter() - began)
        after, failure = await collect(device, prefix(GARDEN, max_tokens=4))
        return sorted(taken), after, failure

    fresh = asyncio.run(collect(device, prefix(GARDEN, max_tokens=4)))
    taken, after, failure = asyncio.run(go())
    assert taken[len(taken) // 2] < 0.020
    assert (after, failure) == fresh


@pytest.mark.slow
def test_work_that_waits_is_cancelled_without_the_work_before_it(device):
    async def go():
        running = device.generate(prefix(LONG, max_tokens=5))
        first = asyncio.ensure_future(anext(running))
        await asyncio.sleep(0.05)
        waiting = asyncio.ensure_future(anext(device.generate(prefix(GARDEN))))
        await asyncio.sleep(0.05)
        began = time.perf_counter()
        waiting.cancel()
        await asyncio.wait([waiting])
        taken = time.perf_counter() - began
        still = not first.done()
        first.cancel()
        await asyncio.wait([first])
        return taken, still

    taken, still = asyncio.run(go())
    assert still
    assert taken < 0.020


@pytest.mark.slow
def test_a_closed_device_refuses_and_ends_what_runs():
    async def go():
        async with LlamaCppEndpoint(smollm2_path(), n_ctx=1024, name="device") as endpoint:
            running = asyncio.ensure_future(collect(endpoint, prefix(LONG)))
            await asyncio.sleep(0.1)
        endpoint.close()
        return await running, await collect(endpoint, prefix([5, 6]))

    (tokens, cut), (_, refused) = asyncio.run(go())
    assert (tokens, type(cut), type(refused)) == ([], dc.CutError, dc.RefusedError)
    with pytest.raises(dc.InputError, match="at most 8192"):
        LlamaCppEndpoint(smollm2_path(), n_ctx=9000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "word"),
    [
        (prefix(LONG, max_tokens=600), "tokens of context, it has 1024"),
        (prefix(max_tokens=0), "max_tokens"),
        (prefix([]), "empty"),
        (prefix([49152]), "49151"),
    ],
)
def test_what_does_not_fit_the_device_is_refused(device, asked, word):
    tokens, failure = asyncio.run(collect(device, asked))
    assert tokens == []
    assert type(failure) is dc.RefusedError
    assert word in str(failure)


@pytest.mark.slow
def test_a_cancel_on_the_server_frees_its_slot(there):
    async def go():
        async with there:
            tokens = there.generate(prefix(LONG, max_tokens=50))
            first = asyncio.ensure_future(anext(tokens))
            await asyncio.sleep(0.1)
            first.cancel()
            await asyncio.wait([first])
            slots = await there._pool().get(f"{there.url}/slots")
            return [slot["is_processing"] for slot in slots.json()], there.unconfirmed

    busy, unconfirmed = asyncio.run(go())
    assert not any(busy)
    assert unconfirmed == 0


@pytest.mark.slow
def test_a_wrong_or_missing_key_is_refused_and_not_repeated(server):
    for key in (None, "sk-wrong-key"):
        with pytest.raises(dc.RefusedError, match="there: 401") as caught:
            LlamaServerEndpoint(server.url, api_key=key, name="there")
        assert "sk-wrong-key" not in "".join(traceback.format_exception(caught.value))
    assert KEY not in repr(server)
    command = Path(f"/proc/{server.pid}/cmdline").read_bytes() + Path(f"/proc/{server.pid}/environ").read_bytes()
    assert KEY.encode() not in command


@pytest.mark.slow
@pytest.mark.parametrize("continuation", ["completions", "prefix", "continue_final_message"])
def test_the_same_server_behind_the_openai_api(server, there, continuation):
    """Tokens as through the native API where the prompt is the same, and a turn that goes on."""

    async def go():
        options = {"continuation": continuation, "template": build("{prompt}"), "options": {"logprobs": True}}
        if continuation == "completions":
            options["options"] = {"logprobs": 1}
        async with there, OpenAIEndpoint("m", base_url=f"{server.url}/v1", api_key=KEY, **options) as endpoint:
            counting = build("Count from one to nine."), [Token(0, "1, 2, 3, 4,")]
            found = await collect(endpoint, prefix(*counting, max_tokens=6))
            native = await collect(there, prefix(*counting, max_tokens=6))
            wrong = OpenAIEndpoint("m", base_url=f"{server.url}/v1", api_key="sk-wrong-key")
            return found, native, (await collect(wrong, prefix()))[1]

    (tokens, failure), (native, _), refused = asyncio.run(go())
    assert failure is None
    assert "5" in "".join(token.text for token in tokens)
    assert tokens[0].index == 1
    if continuation == "completions":
        assert [token.text for token in tokens] == [token.text for token in native]
    assert "401" in str(refused)
    assert "sk-wrong-key" not in "".join(traceback.format_exception(refused))
