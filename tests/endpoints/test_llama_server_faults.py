"""LlamaServerEndpoint where a server answers some requests and not others, or sends what cannot follow."""

import asyncio
import json
import threading
import time

import pytest

import disco_core as dc
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from tests.helpers.loopback import FACTS, collect, piece, prefix, serving, through_server
from tests.helpers.replay import ReplayEndpoint


def sends(*raws):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        for raw in raws:
            handler.wfile.write(raw if isinstance(raw, bytes) else b"data: " + json.dumps(raw).encode() + b"\n\n")
        handler.close_connection = True

    return answer


@pytest.mark.parametrize("count", [5000, 9])
def test_a_count_above_what_was_asked_for_is_refused(count):
    answer = sends(piece("a", [97], 1), piece("x", [5], count), piece("b", [98], 3), piece("", [], 3, "eos"))
    tokens, failure, _ = through_server(answer)
    assert isinstance(failure, dc.ProtocolError)
    assert [token.text for token in tokens] == ["a"]


@pytest.mark.parametrize("garbled", [b"\xff\xfe\x00\x80" * 40 + b"\n\n", b""])
def test_an_event_that_is_lost_is_not_passed_over(garbled):
    answer = sends(piece("a", [97], 1), garbled, piece("c", [99], 3), piece("", [], 3, "eos"))
    tokens, failure, _ = through_server(answer)
    assert isinstance(failure, dc.ProtocolError)
    assert [token.text for token in tokens] == ["a"]


CHAT = [{"role": "user", "content": "hello there"}]


@pytest.mark.parametrize(("prompt", "path"), [("hello there", "/tokenize"), (CHAT, "/apply-template")])
def test_a_stream_whose_tokens_had_to_be_estimated_says_so(prompt, path):
    """A server that answers all but one kind of query once the endpoint is made."""
    silent = threading.Event()

    def unanswered(asked):
        return {"error": "not now"} if silent.is_set() else FACTS[path](asked)

    async def go(url):
        device = ReplayEndpoint(0.01, [0.001], 2, name="here")
        async with LlamaServerEndpoint(url, name="there") as server:
            silent.set()
            live = dc.stream(
                prompt, plan=dc.plan_server_only(), server=server, device=device, max_tokens=2, wait=False
            )
            assert len([token async for token in live]) == 2
            return live.record, server.estimated

    with serving(sends(), FACTS | {path: unanswered}) as url:
        record, estimated = asyncio.run(go(url))
    assert estimated > 0
    assert "there: the prompt's tokens are estimated" in record.warnings


@pytest.mark.parametrize(
    "models",
    [{"data": [{"id": "m"}]}, {"data": [{"status": {"value": "loaded"}}]}, {"data": [{"meta": None}]}, {"models": 7}],
)
def test_an_address_that_is_no_llama_cpp_server_with_a_model_is_named(models):
    with (
        serving(sends(), FACTS | {"/v1/models": models}) as url,
        pytest.raises(dc.EndpointError, match=f"^there: {url}"),
    ):
        LlamaServerEndpoint(url, name="there")


PAGE = b"data: <html><h1>502 Bad Gateway</h1></html>\n\n"


@pytest.mark.parametrize(
    ("instead", "last"),
    [
        (PAGE, piece("ı", [305], 3)),
        (PAGE, piece("", [], 2, "eos")),
        (b"\xff\xfe\x00\x80" * 40 + b"\n\n", piece("", [], 2, "eos")),
        (b"bad gateway\n\n", piece("ı", [305], 3)),
        (b"", piece("ı", [305], 3)),
    ],
)
def test_a_lost_event_is_not_passed_over_where_text_may_have_been_held_back(instead, last):
    """Each character has a token of its own here, so nothing was; a page before the end may replace a token."""
    answer = sends(piece("ö", [246], 1), instead, last, piece("", [], 3, "eos"))
    letters = {
        "/tokenize": lambda asked: {"tokens": [*map(ord, asked["content"])]},
        "/detokenize": lambda asked: {"content": "".join(map(chr, asked["tokens"]))},
    }

    async def go(url):
        async with LlamaServerEndpoint(url, name="there") as server:
            return await collect(server, prefix())

    with serving(answer, FACTS | letters) as url:
        tokens, failure = asyncio.run(go(url))
    assert isinstance(failure, dc.EndpointError)
    assert [token.text for token in tokens] == ["ö"]


def test_a_cancel_before_a_slot_is_taken_waits_until_it_is_taken_and_left():
    """A busy server reads the request late; until then no slot processes it, and it seems to have stopped."""
    processing, left = threading.Event(), threading.Event()

    def answer(handler):
        mark = handler.asked["dry_allowed_length"]
        slots.append({"is_processing": True, "params": {"dry_allowed_length": mark}})
        time.sleep(0.2)  # longer than it takes the endpoint to ask for the slots
        processing.set()
        sends(piece("a", [97], 1))(handler)
        time.sleep(0.1)
        slots.clear()
        left.set()

    slots = []

    async def go(url):
        async with LlamaServerEndpoint(url, name="there") as server:
            generation = server.generate(prefix())
            first = asyncio.create_task(anext(generation))
            await asyncio.sleep(0.05)
            first.cancel()
            await asyncio.wait([first])
            await generation.aclose()
            return left.is_set()

    visible = lambda _: list(slots) if processing.is_set() else []  # noqa: E731
    with serving(answer, FACTS | {"/slots": visible}) as url:
        assert asyncio.run(go(url))
