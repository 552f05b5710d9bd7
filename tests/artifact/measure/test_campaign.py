"""Streams under faults: a small campaign on real endpoints, and what the checks of promises see."""

import asyncio
import contextlib
import json

import httpx
import pytest

from artifact.data import model
from artifact.data.model import tokenizer
from artifact.measure import campaign
from artifact.measure.cases import KINDS, MOVES, case
from artifact.measure.promises import Evidence, Job, broken, same_text
from artifact.measure.proxy import MALFORMED, Exchange, Fault, Proxy
from disco_core.cost import End
from disco_core.endpoints.base import Prefix, Token
from disco_core.errors import CutError, StreamError
from disco_core.record import HandOver, Record, StreamedToken
from tests.helpers.measuring import a_run

PROMPT, EOS = [1, 4093, 198], 2
IDS = [504, 2605, 314, 253, 1782, 2555]  # an answer: three tokens of the server, then three of the device


def text(id):
    return tokenizer().detokenize([id]).decode()


def evidence():
    """A stream that migrates from the server to the device after three tokens, as all logs have it."""
    tokens = [
        StreamedToken(i, text(id), id, End.SERVER if i < 3 else End.DEVICE, 0.1 * i, 0.1 * i)
        for i, id in enumerate(IDS)
    ]
    record = Record(
        tokens=tokens,
        handovers=[HandOver(3, End.SERVER, End.DEVICE, 0.3)],
        prefill=[3, 6],
        decode=[4, 3],
        complete=True,
    )
    generated = tuple(Token(i, text(id), id) for i, id in enumerate(IDS[:3]))
    sent = [*IDS[:3], 77]  # one more was on its way
    events = [
        {"content": text(id), "tokens": [id], "stop": False, "tokens_predicted": i + 1} for i, id in enumerate(sent)
    ]
    return Evidence(
        record=record,
        prompt=PROMPT,
        max_tokens=9,
        received=[Token(token.index, token.text, token.id) for token in tokens],
        raised=None,
        left=False,
        prefixes={End.SERVER: [Prefix(PROMPT, (), 9)], End.DEVICE: [Prefix(PROMPT, generated, 6)]},
        exchanges=[Exchange("/completion", {"prompt": PROMPT, "n_predict": 9}, "200", events, outcome="client left")],
        jobs=[Job([*PROMPT, *IDS[:3]], [*IDS[3:], EOS])],
        confirmed=9,
        estimated=False,
        prefills=False,
        running=[],
    )


def change(one, what):
    """Break one promise."""
    record = one.record
    if what == "a token is lost":
        del record.tokens[2], one.received[2]
        record.handovers[:] = [HandOver(2, End.SERVER, End.DEVICE, 0.3)]
        record.tokens[:] = [
            StreamedToken(i, t.text, t.id, t.source, t.generated_s, t.due_s) for i, t in enumerate(record.tokens)
        ]
    elif what == "the reader gets another text":
        one.received[1] = Token(1, "x", IDS[1])
    elif what == "the reader gets too little":
        del one.received[-1]
    elif what == "the hand-over is elsewhere":
        record.handovers[:] = [HandOver(2, End.SERVER, End.DEVICE, 0.3)]
    elif what == "the target continues something else":
        one.jobs[0].prefix[4] = 99
    elif what == "too little is asked for":
        one.exchanges[0].body["n_predict"] = 8
    elif what == "the server charges too much":
        record.decode[End.SERVER] = 5
    elif what == "the server charges too little":
        record.decode[End.SERVER] = 2
    elif what == "the device charges too little":
        record.decode[End.DEVICE] = 2
    elif what == "a prefill is not charged":
        record.prefill[End.DEVICE] = 3
    elif what == "the device processed more":
        one.confirmed = 10
    elif what == "a cut answer is complete":
        one.jobs[0].sampled.pop()
    elif what == "it ends without an error":
        record.complete = False
    elif what == "it gives up too early":
        record.complete, record.error = False, StreamError("no")
        one.raised, record.failures = record.error, [CutError("server", "cut")]
    elif what == "it raises something else":
        one.raised = KeyError("x")
    else:
        one.running = ["the device"]


BROKEN = {
    "a token is lost": "text",
    "the reader gets another text": "text",
    "the reader gets too little": "text",
    "the hand-over is elsewhere": "text",
    "the target continues something else": "request",
    "too little is asked for": "request",
    "the server charges too much": "charge",
    "the server charges too little": "charge",
    "the device charges too little": "charge",
    "a prefill is not charged": "charge",
    "the device processed more": "charge",
    "a cut answer is complete": "complete",
    "it ends without an error": "complete",
    "it gives up too early": "complete",
    "it raises something else": "complete",
    "something is left": "running",
}


def test_a_stream_that_keeps_its_promises_has_no_violation():
    assert broken(evidence()) == []


@pytest.mark.parametrize(("what", "kind"), BROKEN.items())
def test_every_broken_promise_is_seen(what, kind):
    one = evidence()
    change(one, what)
    assert kind in {text.partition(":")[0] for text in broken(one)}


HALF = 5549  # a space and the first half of a character


@pytest.mark.parametrize(
    ("texts", "same"),
    [(["M", "io", ""], True), (["M", "io", " "], True), (["M", "i", ""], False), (["M", "", ""], False)],
)
def test_a_text_may_end_before_an_unfinished_character(texts, same):
    ids = [*tokenizer().tokenize(b"Mio", add_bos=False), HALF]
    tokens = [
        StreamedToken(i, text, id, End.SERVER, 0.0, 0.0) for i, (text, id) in enumerate(zip(texts, ids, strict=True))
    ]
    assert same_text(tokens) is same


def test_a_prefill_that_had_to_be_estimated_is_no_violation():
    one = evidence()
    one.record.prefill[End.SERVER], one.estimated = 4, True
    assert broken(one) == []


def test_cases_take_turns_and_are_drawn_from_the_seed():
    found = [case(number, 0, ["Why?"]) for number in range(1000)]
    assert [one.kind for one in found[: len(KINDS)]] == list(KINDS)
    assert {(one.kind, one.moves) for one in found} == {(kind, moves) for kind in KINDS for moves in MOVES}
    assert {fault.variant for one in found for fault in one.faults} > set(MALFORMED)
    assert [vars(one) | {"faults": 0} for one in found[:9]] == [
        vars(case(number, 0, ["Why?"])) | {"faults": 0} for number in range(9)
    ]


EVENTS = [{"content": "a", "tokens": [5], "stop": False, "tokens_predicted": i} for i in range(1, 5)]


async def _server(reader, writer):
    """Four events in chunks, unless the client leaves."""
    with contextlib.suppress(OSError):
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for event in EVENTS:
            raw = f"data: {json.dumps(event)}\n\n".encode()
            writer.write(b"%x\r\n%b\r\n" % (len(raw), raw))
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _through(*faults):
    """What a client gets through the proxy, and what the proxy logs."""
    server, proxy = await asyncio.start_server(_server, "127.0.0.1", 0), Proxy()
    proxy.upstream, proxy.armed = server.sockets[0].getsockname()[:2], list(faults)
    await proxy.start()
    raw = b""
    try:
        async with (
            httpx.AsyncClient(trust_env=False) as client,
            client.stream("POST", f"{proxy.url}/completion", json={"prompt": [1]}) as reply,
        ):
            async for piece in reply.aiter_bytes():
                raw += piece
    except httpx.HTTPError as error:
        raw += type(error).__name__.encode()
    await proxy.close()
    server.close()
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})  # the server's handlers
    return reply.status_code, raw, proxy.exchanges[0]


@pytest.mark.parametrize("fault", [None, *MALFORMED])
def test_the_log_has_what_the_server_sent_whatever_is_forwarded(fault):
    faults = [] if fault is None else [Fault("malformed", fault)]
    status, raw, log = asyncio.run(_through(*faults))
    assert (status, log.outcome, log.events, log.predicted) == (200, "whole", EVENTS, 4)
    assert (raw.count(b'"tokens_predicted": 1}') == 1) == (
        fault is None or not MALFORMED[fault][1] or "%d" in str(MALFORMED[fault])
    )
    assert all(one.struck for one in faults)


@pytest.mark.parametrize(
    ("fault", "status", "outcome", "end"),
    [
        (Fault("429"), 429, "whole", b"}}"),
        (Fault("503", "everything"), 503, "whole", b"}}"),
        (Fault("cut", "reset", share=0.5), 200, "cut", b"ReadError"),
        (Fault("cut", "closed", share=0.5), 200, "cut", b"RemoteProtocolError"),
        (Fault("slow", "trickle", lasts_s=0.02), 200, "whole", b"\n\n"),
    ],
)
def test_the_proxy_injects_faults_and_says_how_a_request_ended(fault, status, outcome, end):
    got, raw, log = asyncio.run(_through(fault))
    assert (got, log.outcome, fault.struck) == (status, outcome, True)
    assert raw.endswith(end)


@pytest.mark.slow
def test_a_small_campaign_keeps_every_promise(tmp_path):
    assert model.smollm2_path().exists()
    found = campaign.measure(a_run(tmp_path, "campaign", streams=25, batch=25, lanes=3))
    streams, violations = found["streams"], found["violations"]
    assert violations[["stream", "promise", "what"]].to_numpy().tolist() == []
    assert streams.stream.tolist() == list(range(25))
    assert set(streams.kind) == set(KINDS)
    assert (streams.struck > 0).sum() > 8
    assert streams.outcome.str.startswith("complete").sum() > 12
    assert streams.failovers.sum() + streams.migrations.sum() > 0
