"""What the fault campaign found in LlamaServerEndpoint: an answer that goes on past an event it cannot have read."""

import json

import pytest

import disco_core as dc
from tests.helpers.loopback import piece, through_server


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
