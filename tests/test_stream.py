"""The live machine on replayed ends under a virtual clock: it agrees with the simulator, and loses nothing."""

import asyncio

import numpy as np
import pytest
from clock import run
from hypothesis import event, given, settings
from hypothesis import strategies as st
from strategies import plans
from test_migration import rules

import disco_core as dc
from disco_core import stream
from disco_core.endpoints.replay import Failure, ReplayEndpoint

MS = st.integers(1, 40).map(lambda ms: ms / 1000)
DEVICE = dc.DeviceProfile(500.0, 25.0)
SERVER_RATE = 50.0


def ends(server_ttft, length, **server):
    server = ReplayEndpoint(server_ttft, [1 / SERVER_RATE], length, name="server", **server)
    return server, ReplayEndpoint(lambda n: float(DEVICE.ttft(n)), [1 / DEVICE.decode_rate], length, name="device")


async def collect(running):
    tokens, error = [], None
    try:
        async for token in running:
            tokens.append(token)
    except dc.StreamError as failure:
        error = failure
    return tokens, error


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


failures = st.none() | st.sampled_from(Failure)


@settings(max_examples=300)
@given(
    st.integers(1, 12),
    st.integers(1, 30),
    MS,
    plans(),
    st.none() | rules(),
    failures,
    failures,
    st.integers(0, 12),
    st.integers(0, 12),
)
def test_nothing_is_lost_repeated_or_reordered(l, length, first, plan, rule, server_fails, device_fails, at, at2):
    server, device = ends(first, length, fail=server_fails, at=at, cancel_s=0.5)
    device.fail, device.at, device.cancel_s = device_fails, at2, 0.5
    rng = np.random.default_rng(0)
    live = stream([0] * l, plan=plan, server=server, device=device, rule=rule, max_tokens=length, rng=rng, wait=False)
    tokens, error = run(collect(live))
    record = live.record
    assert [token.id for token in tokens] == list(range(len(tokens)))
    assert [token.index for token in tokens] == list(range(len(tokens)))
    assert record.complete == (error is None) == (len(tokens) == length)
    assert (record.error is error) or error is None
    assert (server.running, device.running) == (0, 0)
    assert record.prefill == [server.prefilled, device.prefilled]
    # each end counted for itself; not charged is one token of a loser: at the winner's own instant, or, where the
    # rule keeps it, the one that tells that its prefill has ended
    uncharged = [server.made - record.decode[0], device.made - record.decode[1]]
    assert uncharged in ([0, 0], [0, 1], [1, 0])
    if uncharged != [0, 0]:
        assert record.started == [True, True]
        assert uncharged[record.winner] == 0
        assert record.winner == dc.End.SERVER or rule.keeps_loser
    times = [(token.generated_s, token.released_s) for token in tokens]
    assert times == sorted(times)
    if not (server_fails or device_fails):
        assert error is None
    event("whole" if not error else "failed")


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


def test_how_late_a_wake_up_came_is_a_column_of_its_own():
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


@given(st.integers(1, 12), MS, plans(), st.none() | rules(), st.floats(0, 0.4))
def test_the_readers_cancel_ends_both_ends(l, first, plan, rule, after):
    server, device = ends(first, 40, fail=Failure.SLOW_CANCEL, cancel_s=0.2)
    live = stream(
        [0] * l, plan=plan, server=server, device=device, rule=rule, max_tokens=40, rng=np.random.default_rng(2)
    )

    async def leave():
        try:
            async with asyncio.timeout(after):
                async for _ in live:
                    pass
        except TimeoutError:
            await live.aclose()
        return server.running, device.running

    assert run(leave()) == (0, 0)
    assert live.record.handovers == [one for one in live.record.handovers if one.reason is None]


@pytest.mark.parametrize("vocabulary", ["integers", "other"])
def test_ids_move_between_equal_vocabularies_only(vocabulary):
    cost = dc.CostModel(0, 1e-7, 1e-6, 1e-6)
    rule = dc.MigrationRule(cost, dc.LengthDistribution([200], [1]), dc.TTFTDistribution([0.3]), DEVICE)
    server, device = ends(0.3, 100)
    server.vocabulary = vocabulary
    live = stream([0] * 20, plan=dc.plan_device_only(), server=server, device=device, rule=rule, max_tokens=100)
    tokens, error = run(collect(live))
    assert error is None
    assert "".join(token.text for token in tokens) == "".join(f"{i} " for i in range(100))
    at = live.record.migrated_at
    assert at > 0
    moved = server.seen[0].generated
    assert [token.text for token in moved] == [token.text for token in tokens[:at]]
    assert [token.id for token in moved] == (list(range(at)) if vocabulary == "integers" else [None] * at)


@pytest.mark.parametrize("keeps", [False, True])
def test_a_loser_is_cancelled_or_keeps_prefilling(keeps):
    cost, distribution = dc.CostModel(1, 1, 1, 1), dc.TTFTDistribution([0.3])
    rule = dc.MigrationRule(cost, dc.LengthDistribution([9], [1]), distribution, DEVICE, keeps_loser=keeps)
    server, device = ends(0.05, 100)  # the device needs 0.2 s for its prefill, the server 2 s for the answer
    both = dc.plan_stochastic(1.0, dc.Constraint.DEVICE, both=True)
    rng = np.random.default_rng(0)
    live = stream([0] * 100, plan=both, server=server, device=device, rule=rule, max_tokens=100, rng=rng, wait=False)
    running = []

    async def watch():
        async for token in live:
            running.append((token.generated_s, device.running))

    run(watch())
    last = max(at for at, works in running if works)
    assert (last == pytest.approx(0.2, abs=0.03)) if keeps else (last < 0.08)
    assert live.record.decode == [100, 0]
    assert live.record.prefill == [100, 100]


class Refined(dc.MigrationRule):
    """A rule whose device reads the second half of the prompt only."""

    def prompt_for(self, end, prompt):
        return prompt[len(prompt) // 2 :] if end is dc.End.DEVICE else prompt


def test_the_rule_builds_the_prompt_of_each_end():
    cost = dc.CostModel(1e-6, 1e-6, 0, 1e-7)
    rule = Refined(cost, dc.LengthDistribution([200], [1]), dc.TTFTDistribution([0.3]), DEVICE)
    server, device = ends(0.05, 100)
    live = stream([*range(40)], plan=dc.plan_server_only(), server=server, device=device, rule=rule, max_tokens=100)
    tokens, error = run(collect(live))
    assert error is None
    assert [token.id for token in tokens] == list(range(100))
    at = live.record.migrated_at
    assert at > 0
    assert [server.seen[0].prompt, device.seen[0].prompt] == [list(range(40)), list(range(20, 40))]
    assert live.record.prefill == [40, 20 + at]


def test_a_refused_hand_over_says_why():
    cost = dc.CostModel(0, 1e-7, 1e-6, 1e-6)
    rule = dc.MigrationRule(cost, dc.LengthDistribution([200], [1]), dc.TTFTDistribution([0.3]), DEVICE)
    for change, word in (({"continues": False}, "open assistant turn"), ({"context": 60}, "60")):
        server, device = ends(0.3, 100)
        for name, value in change.items():
            setattr(server, name, value)
        live = stream([0] * 20, plan=dc.plan_device_only(), server=server, device=device, rule=rule, max_tokens=100)
        tokens, error = run(collect(live))
        assert error is None
        assert len(tokens) == 100
        assert live.record.migrated_at == 0
        assert len(live.record.refusals) == 1
        assert word in live.record.refusals[0]
