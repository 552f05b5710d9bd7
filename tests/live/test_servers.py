"""What real servers send, in a stream beside another endpoint: bytes over a loopback socket."""

import asyncio

import pytest

import disco_core as dc
from disco_core.endpoints.base import Endpoint, Generation, Token
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from disco_core.endpoints.openai import OpenAIEndpoint
from tests.helpers.loopback import FACTS, serving
from tests.helpers.server_cases import CASES
from tests.helpers.streams import collect

REST = (" and", " so", " on.")


class Phone(Endpoint):
    """Says so many pieces of an answer, at once or after a while, and goes on after any text."""

    name, continues = "phone", True

    def __init__(self, pieces=REST, after_s=0.0):
        self.pieces, self.after_s = pieces, after_s

    def count(self, prompt):
        return 3

    def generate(self, prefix):
        return Generation(self.tokens(prefix))

    async def tokens(self, prefix):
        await asyncio.sleep(self.after_s)
        first = len(prefix.generated)
        for index, text in enumerate(self.pieces[: prefix.max_tokens], first):
            yield Token(index, text)


class MovesAt(dc.Rule):
    """The server takes over after so many tokens."""

    target = dc.End.SERVER

    def __init__(self, at):
        self.at = at

    def decide(self, state):
        return dc.HAND_OVER if len(state.record.tokens) == self.at else dc.STAY


async def streamed(case, url, **given):
    common = {"name": "there", "deadline_s": 10.0} | case.options
    there = LlamaServerEndpoint(url, **common) if case.native else OpenAIEndpoint("m", base_url=f"{url}/v1", **common)
    async with there:
        live = dc.stream("Why is the sea salty?", server=there, max_tokens=case.max_tokens, wait=False, **given)
        return *await collect(live), live.record


def run(case, monkeypatch, **given):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(case.answer, FACTS if case.native else None) as url:
        return asyncio.run(streamed(case, url, **given))


@pytest.mark.parametrize("case", [one for one in CASES if not one.before], ids=lambda one: f"{one.kind}: {one.name}")
def test_the_reader_gets_the_server_s_answer_or_the_device_goes_on(case, monkeypatch):
    tokens, error, record = run(case, monkeypatch, plan=dc.plan_server_only(), device=Phone())
    texts = tuple(token.text for token in tokens)
    if case.failure is dc.FilteredError:
        assert texts == case.texts
        assert isinstance(error, dc.StreamError)
        assert not record.complete
        return
    assert error is None
    assert record.complete
    takes_over = case.failure is not None or not case.texts
    assert texts == case.texts + REST[: case.max_tokens - len(case.texts)] * takes_over
    if takes_over:
        assert record.failures[0].endpoint == "there"
        assert all(word in str(record.failures[0]) for word in case.words)
    else:
        assert record.failures == []
    assert record.reasoning[dc.End.SERVER] == len(case.reasoning)
    made = len(case.texts) + len(case.reasoning)
    assert record.decode[dc.End.SERVER] == made + case.undelivered


@pytest.mark.parametrize("case", [one for one in CASES if one.before], ids=lambda one: f"{one.kind}: {one.name}")
def test_a_hand_over_to_it_repeats_nothing_and_ends_whole(case, monkeypatch):
    """The device says what was there before; the server takes over, or is refused and the device says the rest."""
    words = [(" " if k else "") + word for k, word in enumerate(case.before.split(" "))]
    phone = Phone(tuple(words))
    tokens, error, record = run(case, monkeypatch, plan=dc.plan_device_only(), device=phone, rule=MovesAt(len(words)))
    text = "".join(token.text for token in tokens)
    assert text.startswith(case.before)
    said = text.removeprefix(case.before)
    if record.failures:  # the server was left, and the phone repeats its own pieces, which is its way of going on
        assert case.failure is not None
        assert record.failures[0].endpoint == "there"
    elif record.handovers:
        assert error is None
        assert said == "".join(case.texts)
