"""A live stream and the simulator agree on every time, token and charge; replayed endpoints, virtual clock."""

import asyncio

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

import disco_core as dc
from disco_core import stream
from tests.helpers.clock import run
from tests.helpers.replay import ReplayEndpoint
from tests.helpers.strategies import plans, rules
from tests.helpers.streams import DEVICE, MS, SERVER_RATE, collect, ends


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 60), MS), min_size=1, max_size=6), plans(), rules())
def test_live_and_simulated_agree_exactly(requests, plan, rule):
    """TTFT, winner, hand-over, delayed tokens and ledger of every request, on a grid of whole ms, ties included."""
    prompts, outputs, ttft_s = zip(*requests, strict=True)
    load = dc.Workload(np.zeros(len(requests)), prompts, outputs)
    delays = plan.draw(load.prompt_tokens, np.random.default_rng(5))
    profile = dc.ServerProfile(dc.TTFTDistribution(ttft_s), SERVER_RATE)
    result = dc.simulate(load, plan, profile, DEVICE, rule.cost, rule, ttft_s=ttft_s, delays_s=delays)
    for i, (l, length, first) in enumerate(requests):
        server, device = ends(first, length)
        fixed = dc.DispatchPlan("drawn", [l], delays[:, i].reshape(2, 1, 1), [[1.0]])
        live = stream([0] * l, plan=fixed, server=server, device=device, rule=rule, max_tokens=length, wait=False)
        tokens, error = run(collect(live))
        record = live.record
        assert error is None
        assert [token.id for token in tokens] == list(range(length))
        assert record.ttft_s == result.ttft_s[i]
        assert record.winner == result.winner[i]
        assert record.migrated_at == result.migrated_at[i]
        assert record.delay_num == result.delay_num[i]
        assert record.started == [result.server_started[i], result.device_started[i]]
        assert record.prefill == [result.ledger.server_prefill[i], result.ledger.device_prefill[i]]
        assert record.decode == [result.ledger.server_decode[i], result.ledger.device_decode[i]]
        assert (server.running, device.running) == (0, 0)
        event("migrated" if record.migrated_at else "stayed")


@given(st.integers(1, 12), st.integers(1, 40), MS, plans(), st.none() | rules())
def test_waiting_and_measuring_record_the_same_times(l, length, first, plan, rule):
    recorded = []
    for wait in (True, False):
        server, device = ends(first, length)
        rng = np.random.default_rng(1)
        live = stream(
            [0] * l, plan=plan, server=server, device=device, rule=rule, max_tokens=length, rng=rng, wait=wait
        )

        async def timed(live=live):
            return [(token, asyncio.get_running_loop().time()) async for token in live]

        arrived = run(timed())
        recorded.append((live.record.tokens, live.record.handovers))
        assert live.record.late_s == [0.0] * len(arrived) * wait
        if wait:
            assert all(at == token.released_s for token, at in arrived)
    assert recorded[0] == recorded[1]


def test_how_late_a_wake_up_came_is_recorded_apart_from_the_release():
    """A reader who is slow to come back is late, and the times of release stay what they were."""
    server, device = ends(0.1, 5)
    live = stream([0], plan=dc.plan_server_only(), server=server, device=device, max_tokens=5)

    async def slowly():
        async for token in live:
            if token.index == 1:
                await asyncio.sleep(0.5)  # more than two tokens' time

    run(slowly())
    third = 0.5 - 1 / 4.8
    assert live.record.late_s == pytest.approx([0, 0, third, third - 1 / 4.8, 0])
    assert [token.released_s for token in live.record.tokens] == pytest.approx([0.1 + i / 4.8 for i in range(5)])


def test_a_token_made_when_it_is_due_is_not_delayed():
    server, device = (ReplayEndpoint(1.0, [0.25], 8) for _ in range(2))
    live = stream(
        [0] * 4, plan=dc.plan_server_only(), server=server, device=device, max_tokens=8, reading_rate=4.0, wait=False
    )
    tokens, _ = run(collect(live))
    assert [token.due_s for token in tokens] == [token.generated_s for token in tokens]
    assert live.record.delay_num == dc.delayed([token.generated_s for token in tokens], 4.0).sum() == 0
