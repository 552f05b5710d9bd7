"""An emulated network delay: the first token comes at the later of the delay and the TTFT, nothing is lost."""

import asyncio
from contextlib import aclosing, suppress

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import disco_core as dc
from artifact.measure.network_delay import LastHop
from disco_core.endpoints.base import Prefix, Token
from disco_core.live.stream import stream
from tests.helpers.clock import run
from tests.helpers.replay import Failure, ReplayEndpoint
from tests.helpers.strategies import plans, rules

MS = st.integers(1, 400).map(lambda ms: ms / 1000)
GAP = 0.02


def behind(own_s, length, x_s, bursts=None, **endpoint):
    server = ReplayEndpoint(own_s, [GAP], length, name="server", **endpoint)
    return server, LastHop(server, dc.TTFTDistribution([x_s]), seed=1, bursts=bursts)


async def arrivals(endpoint, prefix=None):
    loop, found = asyncio.get_running_loop(), []
    try:
        async for token in endpoint.generate(prefix or Prefix([0] * 5, (), 100)):
            found.append((token.index, loop.time()))
    except dc.EndpointError as failure:
        return found, failure
    return found, None


@given(MS, MS, st.integers(1, 12))
def test_the_first_token_waits_and_the_others_keep_their_gaps(own, x, length):
    server, delayed = behind(own, length, x)
    found, failure = run(arrivals(delayed))
    assert failure is None
    assert [index for index, _ in found] == list(range(length))
    assert found[0][1] == max(own, x)
    assert np.diff([at for _, at in found]) == pytest.approx([GAP] * (length - 1))
    assert server.running == 0


def test_a_network_delay_below_the_servers_ttft_changes_no_time():
    server = ReplayEndpoint(0.3, [GAP], 9)
    bare, _ = run(arrivals(server))
    behind_it, _ = run(arrivals(behind(0.3, 9, 0.1)[1]))
    assert bare == behind_it


@given(MS, MS, st.integers(1, 30), st.lists(st.integers(1, 15), min_size=1, max_size=3))
def test_bursts_arrive_together_and_complete(own, x, length, sizes):
    found, failure = run(arrivals(behind(own, length, x, bursts=sizes)[1]))
    assert failure is None
    assert [index for index, _ in found] == list(range(length))
    assert found[0][1] == max(own, x)
    counts = np.unique([at for _, at in found], return_counts=True)[1]
    assert counts[0] == 1
    assert set(counts[1:-1]) <= set(sizes)
    assert all(at >= own + index * GAP - 1e-9 for index, at in found)


@given(st.sampled_from([Failure.REFUSE, Failure.DIE_BEFORE_FIRST, Failure.CUT, Failure.MALFORMED]), st.integers(1, 9))
def test_a_failure_arrives_after_the_tokens_before_it(fail, at):
    server, delayed = behind(0.1, 20, 0.5, bursts=[4], fail=fail, at=at)
    found, failure = run(arrivals(delayed))
    early = fail in (Failure.REFUSE, Failure.DIE_BEFORE_FIRST)
    assert failure is not None
    assert [index for index, _ in found] == ([] if early else list(range(at)))
    assert server.running == 0


def test_closing_waits_for_the_endpoints_confirmed_end():
    async def leave():
        server, delayed = behind(0.1, 50, 0.3, fail=Failure.SLOW_CANCEL, cancel_s=0.7)
        tokens = delayed.generate(Prefix([0], (), 50))
        await anext(tokens)
        await tokens.aclose()
        waiting = asyncio.ensure_future(anext(delayed.generate(Prefix([0], (), 50))))
        await asyncio.sleep(0.2)  # held: the server has long answered
        waiting.cancel()
        await asyncio.wait([waiting])
        return server.running, asyncio.get_running_loop().time()

    assert run(leave()) == (0, pytest.approx(0.3 + 0.7 + 0.2 + 0.7))


def test_a_request_draws_the_same_whatever_the_policy():
    ttft = dc.TTFTDistribution(np.linspace(0.1, 0.9, 100))
    server = ReplayEndpoint(0.05, [GAP], 10)
    delayed_servers = [LastHop(server, ttft, seed=3, request=i) for i in range(50)]
    drawn = [delayed.held_s() for delayed in delayed_servers]
    assert drawn == [LastHop(server, ttft, seed=3, request=i).held_s() for i in range(50)]
    assert len(set(drawn)) > 25
    assert drawn != [LastHop(server, ttft, seed=4, request=i).held_s() for i in range(50)]
    assert drawn != [delayed.held_s(takeover=True) for delayed in delayed_servers]
    prefix = Prefix([0] * 5, tuple(Token(i, "", i) for i in range(3)), 7)
    found, _ = run(arrivals(LastHop(ReplayEndpoint(0.05, [GAP], 10), ttft, seed=3), prefix))
    assert found[0] == (3, delayed_servers[0].held_s(takeover=True))


def test_the_race_is_decided_by_the_delayed_tokens():
    server, delayed = behind(0.1, 20, 0.5)
    device = ReplayEndpoint(0.2, [GAP], 20, name="device")
    plan = dc.plan_server_constrained([5], 1.0)

    async def both():
        live = stream([0] * 5, plan=plan, server=delayed, device=device, max_tokens=20, wait=False)
        async for _ in live:
            pass
        return live.record

    record = run(both())
    assert (record.winner, record.ttft_s) == (dc.End.DEVICE, 0.2)
    assert server.running == 0


CANCELS = st.none() | MS | st.floats(0, 1)
HOPS = st.none() | st.tuples(MS, st.none() | st.lists(st.integers(1, 9), min_size=1, max_size=3))


@settings(max_examples=300)
@given(
    st.data(), st.integers(1, 12), st.integers(1, 30), plans(), st.none() | rules(), st.none() | MS | st.floats(0, 1)
)
def test_what_is_generated_behind_a_network_delay_is_charged(data, l, length, plan, rule, cancel_s):
    """Each replayed endpoint counts for itself, and the ledger agrees, also about what has not arrived.

    Not charged is one token of a loser: the one that tells that its prefill has ended.
    """
    inner, outer = [], []
    for name in ("server", "device"):
        own_s, delayed, fail = data.draw(MS), data.draw(HOPS), data.draw(st.none() | st.sampled_from(Failure))
        end = ReplayEndpoint(own_s, [GAP], length, name=name, fail=fail, at=data.draw(st.integers(0, 12)))
        end.cancel_s = 0.5
        inner.append(end)
        outer.append(LastHop(end, dc.TTFTDistribution([delayed[0]]), seed=1, bursts=delayed[1]) if delayed else end)
    rng, ends = np.random.default_rng(0), dict(zip(("server", "device"), outer, strict=True))
    live = stream([0] * l, plan=plan, **ends, rule=rule, max_tokens=length, rng=rng, wait=False)

    async def read():
        with suppress(TimeoutError, dc.StreamError):
            async with asyncio.timeout(cancel_s):
                async for _ in live:
                    pass

    run(read())
    record = live.record
    uncharged = [end.made - decoded for end, decoded in zip(inner, record.decode, strict=True)]
    event(f"uncharged {uncharged}")
    event("cancelled" if record.error is None and not record.complete else "ended")
    assert [end.running for end in inner] == [0, 0]
    if uncharged != [0, 0]:
        assert (uncharged[1 - record.winner], uncharged[record.winner]) == (1, 0)
        assert rule.finish_loser_prefill


def test_a_loser_behind_a_network_delay_is_charged_for_the_tokens_held_back():
    delayed = behind(0.1, 50, 1.01)[1]
    device = ReplayEndpoint(0.51, [GAP], 50, name="device")
    racing, alone = dc.plan_server_constrained([5], 1.0), dc.plan_server_only()
    live = [stream([0] * 5, plan=plan, server=delayed, device=device, max_tokens=50) for plan in (racing, alone)]

    async def one(answer):
        async with aclosing(answer):
            async for _ in answer:
                return

    async def both():
        await asyncio.gather(*map(one, live))

    run(both())
    assert [answer.record.winner for answer in live] == [dc.End.DEVICE, dc.End.SERVER]
    assert [answer.record.decode for answer in live] == [[21, 1], [46, 0]]


def test_its_numbers_say_that_they_are_emulated():
    _, delayed = behind(0.1, 5, 0.2)
    assert delayed.emulated
    assert "emulated" in delayed.name
    assert (delayed.vocabulary, delayed.continues, delayed.count([1, 2])) == ("integers", True, 2)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 1, "request": 1.5}, "request"),
        ({"seed": 1, "bursts": [0]}, "bursts"),
        ({"seed": 1, "bursts": []}, "bursts"),
        ({"seed": 1, "ttft": 0.3}, "ttft"),
    ],
)
def test_bad_arguments_are_named(arguments, word):
    arguments = {"ttft": dc.TTFTDistribution([1.0])} | arguments
    with pytest.raises(dc.InputError, match=word):
        LastHop(ReplayEndpoint(0.1, [GAP], 5), **arguments)
