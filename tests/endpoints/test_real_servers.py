"""Two servers that others wrote, beside the device model: races, hand-overs to and from them, and what is charged.

DISCO_LLAMA_CPP_SERVER and DISCO_LITELLM name Pythons that have `llama-cpp-python[server]` and `litellm[proxy]`; where
they name none, these tests are skipped.
"""

import asyncio

import pytest

import disco_core as dc
from artifact.data.model import build, smollm2_path
from disco_core.endpoints.base import Prefix, Token
from disco_core.endpoints.llama_cpp import LlamaCppEndpoint
from disco_core.endpoints.local_server import LocalServer
from disco_core.endpoints.openai import OpenAIEndpoint
from disco_core.systems.pd_device import plan_together
from tests.helpers.loopback import KEY, collect
from tests.helpers.real_servers import litellm_proxy, llama_cpp_python

pytestmark = pytest.mark.slow
QUESTION = "Why is the sea salty? Answer in three sentences."
LENGTH = 40


class MoveAt(dc.Rule):
    """Hands over to the target after so many tokens."""

    def __init__(self, target, at):
        self.target, self.at = target, at

    def decide(self, state):
        return dc.HAND_OVER if len(state.record.tokens) >= self.at else dc.STAY


@pytest.fixture(scope="module")
def device():
    with LlamaCppEndpoint(smollm2_path(), n_ctx=1024, name="device") as endpoint:
        yield endpoint


@pytest.fixture(scope="module", params=["llama-cpp-python", "LiteLLM"])
def server(request, device):
    """How to make an endpoint of the server: each test runs an event loop of its own."""
    options = {"continuation": "probe", "template": build("{prompt}"), "count_tokens": device.count, "name": "server"}
    if request.param == "llama-cpp-python":
        with llama_cpp_python(smollm2_path()) as url:
            yield lambda **more: OpenAIEndpoint("m", base_url=url, **options | more)
    else:
        with (
            LocalServer(smollm2_path(), api_key=KEY, n_ctx=1024) as behind,
            litellm_proxy(f"{behind.url}/v1", KEY) as (url, key),
        ):
            yield lambda **more: OpenAIEndpoint("m", base_url=url, api_key=key, **options | more)


def text_of(tokens):
    return "".join(token.text for token in tokens)


async def answered(there, device, plan, rule=None, prompt=None, reading_rate=1e3):
    prompt = build(QUESTION) if prompt is None else prompt
    run = dc.stream(
        prompt, plan=plan, server=there, device=device, rule=rule, max_tokens=LENGTH, reading_rate=reading_rate
    )
    async with run:
        tokens = [token async for token in run]
    record = run.record
    assert record.complete
    assert not record.failures
    assert [token.index for token in tokens] == list(range(len(tokens)))
    assert record.unconfirmed == [0, 0]
    return tokens, record


def test_a_probe_finds_how_it_continues(server):
    """In chat llama-cpp-python begins a new turn, so that it needs raw completions; LiteLLM passes the flags on."""

    async def go():
        async with server() as there, server(template=None) as untold:
            return await there.probe(), there.continues, await untold.probe(), untold.continues, untold.probed

    way, continues, without, still, probed = asyncio.run(go())
    assert continues
    assert (way, without, still) in (
        ("completions", "none", False),
        ("continue_final_message", "continue_final_message", True),
    )
    assert still or "starts over" in probed["continue_final_message"]


@pytest.mark.parametrize("chat", [False, True])
def test_races_leave_nothing_running(server, device, chat):
    """Several in a row, since a serial server that goes on after a cancel would hold up the next one."""

    async def go():
        prompt = [{"role": "user", "content": QUESTION}] if chat else build(QUESTION)
        async with server() as there:
            found = [await answered(there, device, plan_together(), prompt=prompt) for _ in range(4)]
            alone, failure = await collect(there, Prefix(prompt, (), LENGTH))
            assert failure is None
            return found, alone, there.usage

    found, alone, _ = asyncio.run(go())
    for tokens, record in found:
        assert record.started == [True, True]
        assert len({token.source for token in tokens}) == 1
        assert all(count >= device.count(build(QUESTION)) - 1 for count in record.prefill) or chat
        assert record.decode[record.winner] >= len(tokens)
        if record.winner is dc.End.SERVER:
            assert text_of(tokens) == text_of(alone)


@pytest.mark.parametrize("at", [1, 7, 20])
def test_a_hand_over_to_it_goes_on_where_the_device_stopped(server, device, at):
    async def go():
        async with server() as there:
            await there.probe()
            tokens, record = await answered(there, device, dc.plan_device_only(), MoveAt(dc.End.SERVER, at))
            head = tokens[: record.migrated_at]
            given = tuple(Token(token.index, token.text) for token in head)
            tail, failure = await collect(there, Prefix(build(QUESTION), given, LENGTH - len(given)))
            assert failure is None
            return tokens, record, tail

    tokens, record, tail = asyncio.run(go())
    check_seam(tokens, record, at, tail)
    assert [token.source for token in tokens[: record.migrated_at]] == [dc.End.DEVICE] * record.migrated_at


@pytest.mark.parametrize("at", [1, 7, 20])
def test_a_hand_over_from_it_goes_on_where_it_stopped(server, device, at):
    async def go():
        async with server() as there:
            await there.probe()
            tokens, record = await answered(there, device, dc.plan_server_only(), MoveAt(dc.End.DEVICE, at))
            given = tuple(Token(token.index, token.text) for token in tokens[: record.migrated_at])
            tail, failure = await collect(device, Prefix(build(QUESTION), given, LENGTH - len(given)))
            assert failure is None
            return tokens, record, tail

    tokens, record, tail = asyncio.run(go())
    check_seam(tokens, record, at, tail)
    assert [token.source for token in tokens[: record.migrated_at]] == [dc.End.SERVER] * record.migrated_at
    assert record.decode[dc.End.SERVER] >= record.migrated_at


def check_seam(tokens, record, at, tail):
    """One hand-over, at most a few tokens late for white space; after it exactly what the target says to the text."""
    assert len(record.handovers) == 1
    assert at <= record.migrated_at <= at + 3
    head = text_of(tokens[: record.migrated_at])
    assert text_of(tokens) == head + text_of(tail)
    assert not head[-1:].isspace()
    target = record.handovers[0].target
    assert record.decode[target] >= len(tail)
    assert record.prefill[target] > record.prefill[1 - target]
    assert sum(record.failover_prefill) == 0


def test_two_answers_at_once_are_both_complete(server, device):
    """A serial server breaks off the first one when the second comes; the device continues it."""

    async def go():
        async with server() as there:
            await there.probe()
            both = {"server": there, "device": device}
            options = {"plan": dc.plan_server_only(), "max_tokens": LENGTH, "reading_rate": 1e3}
            first = dc.stream(build(QUESTION), **both, **options)
            tokens, second = [], None
            async with first:
                async for token in first:
                    tokens.append(token)
                    if token.index == 2:
                        second = asyncio.ensure_future(collect(there, Prefix(build("Say hi."), (), 8)))
            return tokens, first.record, await second

    tokens, record, (other, failure) = asyncio.run(go())
    assert record.complete
    assert [token.index for token in tokens] == list(range(len(tokens)))
    assert failure is None
    assert other
    if record.handovers:
        assert [type(one) for one in record.failures] == [dc.CutError]
        assert record.failover_prefill[dc.End.DEVICE] == record.prefill[dc.End.DEVICE] > 0
