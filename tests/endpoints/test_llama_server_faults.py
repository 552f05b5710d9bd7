"""LlamaServerEndpoint where a server answers some requests and not others, or sends what cannot follow."""

import asyncio
import json
import threading

import pytest

import disco_core as dc
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from tests.helpers.loopback import FACTS, piece, serving, through_server
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
