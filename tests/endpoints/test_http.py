"""Endpoints over HTTP, on small loopback servers: what they send, and what they make of the answers."""

import asyncio
import itertools
import json
import time
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from disco_core.endpoints.base import Token
from disco_core.endpoints.events import Events
from disco_core.endpoints.llama_server import MARK, LlamaServerEndpoint
from disco_core.endpoints.openai import OpenAIEndpoint
from disco_core.errors import FilteredError
from disco_core.live.stream import stream
from tests.helpers.loopback import (
    FACTS,
    KEY,
    chunk,
    collect,
    events,
    piece,
    prefix,
    reply,
    serving,
    through_openai,
    through_server,
)
from tests.helpers.replay import ReplayEndpoint

# --- events out of bytes


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.data())
def test_events_do_not_depend_on_where_bytes_are_cut(texts, newline, data):
    sent = [json.dumps(text, ensure_ascii=False) for text in texts]
    raw = b": a comment" + newline + b"".join(b"data: " + one.encode() + newline * 2 for one in sent)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=8)) | {0, len(raw)})
    reader = Events()
    found = [event for a, b in itertools.pairwise(cuts) for event in reader.feed(raw[a:b])]
    assert [json.loads(data) for _, data in found] == texts


def test_a_line_without_an_end_is_not_buffered_for_ever():
    reader = Events()
    with pytest.raises(ValueError, match="too long"):
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


def test_a_character_begun_by_the_other_endpoint_is_completed():
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
        (events(piece("a", [97], 1)), dc.CutError, "without a finish reason"),
        (events(piece("a", [97], 1), b"[DONE]"), dc.CutError, "without a finish reason"),
        (events(piece("a", [97], 1), b"{not json"), dc.ProtocolError, "unreadable"),
        (events(piece("a", [97], 1), b'"\xff"'), dc.ProtocolError, "unreadable"),
        (events(piece("a", [97], 1), b"[1]"), dc.ProtocolError, "unreadable"),
        (events(piece("a", [97], 1), {"what": 1}), dc.ProtocolError, "unreadable"),
        (events(piece("a", [97], 1), piece(None, [98], 2)), dc.ProtocolError, "unreadable"),
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
        return [{"is_processing": len(polls) < 5, "params": {MARK: marks[-1]}}]

    marks = []

    def answer(handler):
        marks.append(handler.asked[MARK])
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


def test_a_server_that_is_gone_does_not_keep_the_other_endpoint_from_answering():
    with serving(events(), FACTS) as url:
        server = LlamaServerEndpoint(url, name="there")
    device = ReplayEndpoint(0.01, [0.001], 4, vocabulary=server.vocabulary)

    async def go():
        async with server:
            live = stream("hi", plan=dc.plan_server_only(), server=server, device=device, max_tokens=4, wait=False)
            return [token.id async for token in live], live.record

    tokens, record = asyncio.run(go())
    assert tokens == [0, 1, 2, 3]
    assert f"there: it cannot be reached at {url}: " in str(record.failures[0])
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
    assert [token.text for token in tokens] == ["Hello", " big", " world", "!!!"]
    assert [token.index for token in tokens] == list(range(4))
    assert endpoint.usage == [(9, 6)]


@pytest.mark.parametrize(
    ("continuation", "path", "expected"),
    [
        ("completions", "/v1/completions", {"prompt": "<u>hi<a>One, two"}),
        ("prefix", "/v1/chat/completions", {"prefix": True}),
        ("continue_final_message", "/v1/chat/completions", {"continue_final_message": True}),
        ("plain", "/v1/chat/completions", {"role": "assistant"}),
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
    assert ("continue_final_message" in body) == (continuation == "continue_final_message")
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
        (events(chunk("a", reason="content_filter")), FilteredError, "content_filter"),
        (events(chunk("a"), b"{not json"), dc.ProtocolError, "unreadable"),
        (events(chunk("a"), b"[1]"), dc.ProtocolError, "unreadable"),
        (events(chunk("a"), {"error": {"message": "overloaded"}}), dc.CutError, "overloaded"),
        (lambda h: reply(h, b"<html>", kind="text/html"), dc.ProtocolError, "text/html"),
        (lambda h: reply(h, {"error": {"message": f"bad key {KEY}"}}, 401), dc.RefusedError, "401: the key is wrong"),
        (lambda h: reply(h, {"error": {"message": "no model m"}}, 404), dc.RefusedError, "no model m"),
        (lambda h: reply(h, {}, 429, Retry_After="7"), dc.RefusedError, "Retry-After 7 s"),
        (lambda h: setattr(h, "close_connection", True), dc.CutError, "broke"),
        (lambda h: time.sleep(20), dc.StalledError, "deadline"),
    ],
)
def test_a_bad_answer_of_an_openai_server_is_a_typed_failure_without_the_key(answer, kind, word):
    tokens, failure, endpoint = through_openai(answer, deadline_s=0.5 if kind is dc.StalledError else 20)
    assert type(failure) is kind
    assert str(failure).startswith("there: ")
    assert word in str(failure)
    assert len(tokens) <= 1
    told = "".join(traceback.format_exception(failure)) + repr(failure) + repr(endpoint) + repr(failure.__dict__)
    assert KEY not in told


def test_a_stale_connection_of_an_openai_server_is_tried_again_once_and_is_no_failure():
    served, reuse = [], []

    def answer(handler):
        served.append(handler.client_address)
        if served.count(handler.client_address) > 1 or not reuse:  # also a new one, while nothing is kept
            handler.close_connection = True
        else:
            events(chunk("a"), chunk(reason="stop"), b"[DONE]")(handler)

    async def go(url):
        async with OpenAIEndpoint("m", base_url=f"{url}/v1", api_key=KEY, name="there") as endpoint:
            dropped = await collect(endpoint, prefix())
            reuse.append(1)
            return dropped, [await collect(endpoint, prefix()) for _ in range(4)], endpoint.stale_retries

    with serving(answer) as url:
        (_, failure), found, retries = asyncio.run(go(url))
    assert type(failure) is dc.CutError
    assert [failure for _, failure in found] == [None] * 4
    assert retries >= 1
    assert len(served) == 5 + retries


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
