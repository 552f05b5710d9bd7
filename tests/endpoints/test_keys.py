"""A key is found nowhere: no record, log, exception, message or repr, on whatever way an answer goes wrong."""

import asyncio
import logging
import traceback

import pytest

import disco_core as dc
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from disco_core.endpoints.openai import OpenAIEndpoint
from tests.helpers.loopback import FACTS, chunk, collect, events, free_port, piece, prefix, reply, serving, speaking
from tests.helpers.replay import Failure, ReplayEndpoint

KEY = "sk-Sought-in-every-word_0123456789abcdef"
LONG = "x" * 30  # so that a message that is cut short may end within the key


def heard(handler):
    """An error that repeats all that was heard."""
    reply(handler, {"error": {"message": f"{LONG}{KEY} {handler.headers}"}}, 400)


def native(url):
    return LlamaServerEndpoint(url, name="there", api_key=KEY, deadline_s=0.4)


def openai(url):
    return OpenAIEndpoint("m", base_url=f"{url}/v1", name="there", api_key=KEY, deadline_s=0.4)


def everything(failure):
    """All that anybody could print of an exception and of those behind it, suppressed ones included."""
    said = []
    while failure is not None:
        said += [*traceback.format_exception(failure), repr(failure), str(vars(failure)), str(failure.args)]
        failure = failure.__cause__ or failure.__context__
    return "".join(said)


def prefixes(key):
    return [key[:n] for n in range(12, len(key) + 1)]


ANSWERS = {
    "whole": events(piece("a", [97], 1), piece("", [], 1, "eos")),
    "whole chunks": events(chunk("a"), chunk(reason="stop"), b"[DONE]"),
    "wrong key": lambda h: reply(h, {"error": {"message": f"bad key {KEY}"}}, 401),
    "no model": lambda h: reply(h, {"error": {"message": f"no model for {LONG}{KEY}"}}, 404),
    "too many": lambda h: reply(h, {"error": {"message": KEY}}, 429),
    "what it heard": heard,
    "not JSON": lambda h: reply(h, f"<html>{LONG}{KEY}".encode(), 500),
    "a list": lambda h: reply(h, [KEY]),
    "no events": lambda h: reply(h, {"key": KEY}),
    "an error event": events({"error": {"message": f"{LONG}{KEY}"}}),
    "an unreadable event": events(f"{{{LONG}{KEY}".encode()),
    "an event of another kind": events([f"{LONG}{KEY}"]),
    "an odd event": events({KEY: KEY}),
    "an odd piece": events({"content": "a", "tokens": [KEY], "tokens_predicted": KEY, "stop": False}),
    "an odd stop": events(piece("", [], 0, f"{LONG}{KEY}")),
    "an odd finish": events(chunk("a", reason=f"{LONG}{KEY}")),
    "an odd chunk": events({"choices": [{"delta": KEY, "logprobs": KEY, "finish_reason": None}], "usage": KEY}),
    "cut": events(piece("a", [97], 1)),
    "dropped": lambda h: setattr(h, "close_connection", True),
}


@pytest.fixture
def log(caplog):
    """Every logger at its most talkative, asyncio's too."""
    caplog.set_level(logging.DEBUG)
    talkers = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    levels = [talker.level for talker in talkers]
    for talker in talkers:
        talker.setLevel(logging.DEBUG)
    yield caplog
    for talker, level in zip(talkers, levels, strict=True):
        talker.setLevel(level)


def stream(server):
    device = ReplayEndpoint(0.01, [0.001], 3, fail=Failure.REFUSE, name="here")
    return dc.stream("hi", plan=dc.plan_server_only(), server=server, device=device, max_tokens=3, wait=False)


async def told(home, url):
    """Everything that a call of the endpoint, and a stream through it, leave behind."""
    left = []
    try:
        async with home(url) as endpoint:
            tokens, failure = await collect(endpoint, prefix())
            left += [repr(endpoint), str(tokens), everything(failure)]
            live = stream(endpoint)
            try:
                left += [repr([token async for token in live]), repr(live), repr(live.record)]
            except dc.StreamError as both:
                left += [everything(both), repr(live.record)]
                left += [everything(failure) for failure in live.record.failures]
    except dc.EndpointError as refused:
        left.append(everything(refused))
    return left


def look_for_it(home, url, log, capfd):
    left = asyncio.run(told(home, url), debug=True)
    # what a server says in a header, the transport's own loggers repeat at DEBUG: that is not ours to change
    ours = [record for record in log.records if not record.getMessage().startswith("receive_response_headers.")]
    left += [f"{record.getMessage()} {vars(record)}" for record in ours]
    left += capfd.readouterr()
    found = [text for text in left for part in prefixes(KEY) if part in text]
    assert not found, found[0][:2000]


@pytest.mark.parametrize("home", [native, openai])
@pytest.mark.parametrize("answer", ANSWERS)
def test_no_key_whatever_a_server_answers(home, answer, log, capfd):
    with serving(ANSWERS[answer], FACTS if home is native else None) as url:
        look_for_it(home, url, log, capfd)
    assert {record.name.split(".")[0] for record in log.records} & {"httpcore", "httpx"}  # they did say something


@pytest.mark.parametrize("home", [native, openai])
@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 200 OK\r\n", f"{KEY}\r\n".encode(), b"HTTP/1.1 200 OK\r\nA: "])
def test_no_key_whatever_a_port_says(home, greeting, log, capfd):
    with speaking(greeting, echo=True) as there:
        look_for_it(home, f"http://{there}", log, capfd)


@pytest.mark.parametrize("home", [native, openai])
def test_no_key_where_nobody_listens_or_questions_go_wrong(home, log, capfd):
    look_for_it(home, f"http://127.0.0.1:{free_port()}", log, capfd)
    for answer in ("wrong key", "what it heard", "not JSON", "a list", "an odd event"):
        with serving(ANSWERS[answer]) as url:
            look_for_it(home, url, log, capfd)
            look_for_it(home, url.replace("http:", "https:"), log, capfd)
