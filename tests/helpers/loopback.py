"""Small servers on this machine that fail in a chosen way, and what the endpoints make of them."""

import asyncio
import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import disco_core as dc
from disco_core.endpoints.base import Prefix
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from disco_core.endpoints.openai import OpenAIEndpoint

KEY = "sk-loopback-0123456789"


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
def speaking(banner, echo=False):
    """A port that says something that is no HTTP to whoever connects, or nothing at all, or all that it hears."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections = []

        def greet():
            with contextlib.suppress(OSError):
                while True:
                    connections.append(listener.accept()[0])
                    connections[-1].sendall(banner)
                    if echo:
                        connections[-1].sendall(connections[-1].recv(1 << 16))

        threading.Thread(target=greet, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.close()


@contextlib.contextmanager
def deaf():
    """A port that takes no connection: the queue before it is full."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


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


def hanging(*sent, until):
    """An answer that begins with these events and then does not go on until an event is set."""

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        for one in sent:
            handler.wfile.write(b"data: " + json.dumps(one).encode() + b"\n\n")
        handler.wfile.flush()
        until.wait(30)
        handler.close_connection = True

    return answer


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


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


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
