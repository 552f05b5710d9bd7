"""Live streams between the levels of a device and a server of the whole model: hand-overs, failures, refusals."""

import asyncio
import sys

import pytest

import disco_core as dc
from artifact.data.model import smollm2_path
from disco_core.endpoints.base import Prefix, Token
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from disco_core.endpoints.local_server import LocalServer
from disco_core.systems.elastic import Level
from tests.helpers.elastic import LENGTH, PERCENTS, QUESTION, by_length, elastic
from tests.helpers.loopback import KEY, collect

pytestmark = pytest.mark.slow
DEVICE, SERVER = dc.End.DEVICE, dc.End.SERVER


class MoveAt(dc.Rule):
    """Hands over to the target after so many tokens."""

    def __init__(self, target, at):
        self.target, self.at = target, at

    def decide(self, state):
        return dc.HAND_OVER if len(state.record.tokens) >= self.at else dc.STAY


@pytest.fixture(scope="module")
def server():
    with LocalServer(smollm2_path(), api_key=KEY, n_ctx=1024) as running:
        yield running


def told(tokens):
    """Tokens of a stream as those of an endpoint."""
    return [Token(token.index, token.text, token.id) for token in tokens]


def streamed(server, device, rule=None, plan=None, length=LENGTH, prompt=QUESTION, until=None):
    """The record and the tokens of a live stream; `until` is called after each token."""

    async def go():
        async with LlamaServerEndpoint(server.url, api_key=KEY, name="server") as there:
            assert there.vocabulary == device.vocabulary
            run = dc.stream(
                prompt,
                plan=plan or dc.plan_device_only(),
                server=there,
                device=device,
                rule=rule,
                max_tokens=length,
                wait=False,
            )
            tokens = []
            async for token in run:
                tokens.append(token)
                if until is not None:
                    await until(tokens)
            assert [token.index for token in tokens] == list(range(len(tokens)))
            assert run.record.complete
            assert run.record.unconfirmed == [0, 0]
            return run.record, tokens

    return asyncio.run(go())


def of_server(server, asked):
    async def go():
        async with LlamaServerEndpoint(server.url, api_key=KEY) as there:
            return await collect(there, asked)

    tokens, failure = asyncio.run(go())
    assert failure is None
    return tokens


@pytest.mark.parametrize(
    ("percent", "prompt"),
    [*((percent, QUESTION) for percent in PERCENTS), (63, [{"role": "user", "content": "Describe a garden."}])],
)
def test_an_answer_moves_to_the_server_by_token_ids(levels, server, alone, resident, percent, prompt):
    with elastic(levels, lambda _: percent, resident=resident) as device:
        record, tokens = streamed(server, device, MoveAt(SERVER, 4), prompt=prompt)
    at = record.migrated_at
    assert [token.source for token in tokens] == [DEVICE] * at + [SERVER] * (len(tokens) - at)
    assert record.failures == []
    assert told(tokens[:at]) == alone(percent, Prefix(prompt, (), at))
    assert all(token.id is not None for token in tokens[:at])
    assert told(tokens[at:]) == of_server(server, Prefix(prompt, tuple(told(tokens[:at])), LENGTH - at))


@pytest.mark.parametrize("percent", PERCENTS)
def test_an_answer_of_the_server_moves_to_the_level_that_is_chosen(levels, server, alone, percent):
    def choose(asked):
        assert asked.generated
        return percent

    with elastic(levels, choose, resident=False) as device:
        record, tokens = streamed(server, device, MoveAt(DEVICE, 4), dc.plan_server_only())
        assert device.answered == {percent: 1}
    at = record.migrated_at
    assert [token.source for token in tokens] == [SERVER] * at + [DEVICE] * (len(tokens) - at)
    assert record.failures == []
    assert told(tokens[at:]) == alone(percent, Prefix(QUESTION, tuple(told(tokens[:at])), LENGTH - at))


def test_the_server_goes_on_where_the_device_was_closed(levels, server, alone, resident):
    with elastic(levels, lambda _: 85, resident=resident) as device:

        async def until(tokens):
            if len(tokens) == 4:
                await asyncio.to_thread(device.close)

        record, tokens = streamed(server, device, length=200, until=until)
    at = sum(token.source is DEVICE for token in tokens)
    assert [str(failure) for failure in record.failures] == ["device: it was stopped"]
    assert 4 <= at < len(tokens)
    assert told(tokens[:at]) == alone(85, Prefix(QUESTION, (), at))
    assert told(tokens[at:]) == of_server(server, Prefix(QUESTION, tuple(told(tokens[:at])), 200 - at))


def test_a_level_goes_on_where_the_server_died(levels, alone):
    with LocalServer(smollm2_path(), api_key=KEY, n_ctx=1024) as dying, elastic(levels, lambda _: 63) as device:

        async def until(tokens):
            if len(tokens) == 4:
                await asyncio.to_thread(dying.close)

        record, tokens = streamed(dying, device, plan=dc.plan_server_only(), length=60, until=until)
    at = sum(token.source is SERVER for token in tokens)
    assert [type(failure) for failure in record.failures] == [dc.CutError]
    assert 4 <= at < len(tokens)
    assert told(tokens[at:]) == alone(63, Prefix(QUESTION, tuple(told(tokens[:at])), 60 - at))


def failing(asked):
    raise KeyError("no size fits")


@pytest.mark.parametrize(
    ("choose", "word"),
    [
        (lambda _: 50, "device: it has no level 50; its levels are 100, 85, 63 %"),
        (lambda _: None, "device: it has no level None; its levels are 100, 85, 63 %"),
        (lambda _: 0.63, "device: it has no level 0.63; its levels are 100, 85, 63 %"),
        (lambda _: [63], "device: it has no level [63]; its levels are 100, 85, 63 %"),
        (lambda _: 63.0, "device: it has no level 63.0; its levels are 100, 85, 63 %"),
        (lambda _: True, "device: it has no level True; its levels are 100, 85, 63 %"),
        (lambda _: sys.exit("two\nlines"), "device: no level could be chosen: SystemExit: two lines"),
        (failing, "device: no level could be chosen: KeyError: 'no size fits'"),
    ],
)
def test_an_unknown_level_refuses_and_the_server_answers(levels, server, choose, word):
    with elastic(levels, choose, resident=False) as device:
        record, tokens = streamed(server, device)
        assert not device.answered
        assert [(type(one), str(one)) for one in record.failures] == [(dc.RefusedError, word)]
        assert told(tokens) == of_server(server, Prefix(QUESTION, (), LENGTH))
        assert device.confirmed == 0

        record, tokens = streamed(server, device, MoveAt(DEVICE, 4), dc.plan_server_only())
        assert [str(one) for one in record.failures] == [word]
        assert told(tokens) == of_server(server, Prefix(QUESTION, (), LENGTH))


def test_a_level_that_is_gone_refuses_and_the_others_answer(levels, server, tmp_path):
    copy = tmp_path / "63.gguf"
    copy.write_bytes(levels[63].path.read_bytes())
    fewer = levels | {63: Level(levels[63].share, copy)}
    with elastic(fewer, by_length((63, 100)), resident=False) as device:
        copy.unlink()
        record, tokens = streamed(server, device)
        assert told(tokens) == of_server(server, Prefix(QUESTION, (), LENGTH))
        (refused,) = record.failures
        assert type(refused) is dc.RefusedError
        assert str(refused).startswith("device: model_path ")
        assert "63.gguf' cannot be loaded" in str(refused)
        assert "\n" not in str(refused)
        record, tokens = streamed(server, device, length=LENGTH + 1)
    assert record.failures == []
    assert {token.source for token in tokens} == {DEVICE}
