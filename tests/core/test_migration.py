"""The rule against its definition, and simulated hand-overs against one answer at a time in plain Python."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from tests.helpers.reference import race
from tests.helpers.strategies import distributions, lengths_seen, plans, rules


@given(lengths_seen, st.integers(0, 60))
def test_expected_remaining_is_the_mean_of_what_is_left(seen, n):
    rule = dc.MigrationRule(
        dc.CostModel(1, 1, 1, 1),
        dc.LengthDistribution.of(seen),
        dc.TTFTDistribution([1.0]),
        dc.DeviceProfile(1.0, 1.0),
    )
    left = [length - n for length in seen if length > n]
    expected = Fraction(sum(left), len(left)) if left else 0
    assert rule.expected_remaining(n) == pytest.approx(float(expected), abs=1e-9)


def answer(rule, ttft, winner, l, length, gaps, takeover):
    """One answer, token by token: (token times, hand-over index or 0)."""
    source, times, at, now = winner, [], 0, ttft
    for n in range(1, length + 1):
        times.append(now)
        other = 1 - source
        cost = rule.cost
        decode, prefill = (cost.server_decode, cost.device_decode), (cost.server_prefill, cost.device_prefill)
        left = [k - n for k, c in zip(rule.output_tokens.tokens, rule.output_tokens.counts, strict=True)
                for _ in range(c) if k > n]  # fmt: skip
        saving = (decode[source] - decode[other]) * (sum(left) / len(left) if left else 0)
        t_m = rule.server_ttft.quantile(rule.takeover_quantile) if other == 0 else (l + n) / rule.device.prefill_rate
        due = math.floor((now - ttft) * rule.reading_rate) + 1
        moves = saving > prefill[other] * (l + n) and n - due >= math.ceil(rule.reading_rate * t_m)
        if at == 0 and n < length and moves:
            at, source = n, other
            now += takeover(other, l + n)
        else:
            now += gaps[source]
    return times, at


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=8),
    plans(),
    distributions,
    rules(),
    st.data(),
)
def test_equals_the_token_by_token_reference(requests, plan, ttft, rule, data):
    n = len(requests)
    load = dc.Workload(np.arange(n) * 1.0, *zip(*requests, strict=True))
    server, device = dc.ServerProfile(ttft, 50.0), dc.DeviceProfile(100.0, 25.0)
    ms = st.integers(1, 40).map(lambda t: t / 1000)
    given_ttft = np.array([data.draw(ms) for _ in range(n)])
    delays = plan.draw(load.prompt_tokens, np.random.default_rng(0))
    money = rule.cost
    result = dc.simulate(load, plan, server, device, money, rule, ttft_s=given_ttft, delays_s=delays)
    bare = dc.simulate(load, plan, server, device, money, ttft_s=given_ttft, delays_s=delays)
    assert np.array_equal(result.ttft_s, bare.ttft_s)
    assert np.array_equal(result.cost_without, bare.cost)
    for i, (l, length) in enumerate(requests):
        first, winner, started = race(*map(float, delays[:, i]), given_ttft[i], l / 100.0)
        source = ("server", "device").index(winner)

        def takeover(end, tokens, i=i):
            return given_ttft[i] if end == 0 else tokens / 100.0

        times, at = answer(rule, first, source, l, length, (1 / 50.0, 1 / 25.0), takeover)
        assert result.migrated_at[i] == at
        deadlines = [first + k / rule.reading_rate for k in range(length)]
        assert result.delay_num[i] == sum(t > d + 1e-9 for t, d in zip(times, deadlines, strict=True))
        released = [max(t, d) for t, d in zip(times, deadlines, strict=True)]
        gaps = sorted(b - a for a, b in itertools.pairwise(released))
        if gaps:
            assert result.tbt_p99_s[i] == pytest.approx(gaps[math.ceil(0.99 * len(gaps)) - 1], abs=1e-9)
        else:
            assert math.isnan(result.tbt_p99_s[i])
        assert result.qoe[i] == pytest.approx(dc.quality_of_experience(released, reading_rate=rule.reading_rate))
        prefill = [l * (end in started) for end in ("server", "device")]
        decode = [0, 0]
        decode[source] = at or length
        decode[1 - source] = length - (at or length)
        prefill[1 - source] += (l + at) * (at > 0)
        decode[1] += len(started) == 2 and delays[0, i] + given_ttft[i] == delays[1, i] + l / 100.0  # lost a tie
        ledger = result.ledger
        assert [ledger.server_prefill[i], ledger.device_prefill[i]] == prefill
        assert [ledger.server_decode[i], ledger.device_decode[i]] == decode


def test_an_expensive_device_hands_over_and_the_reader_does_not_notice():
    cost = dc.CostModel(0, 1e-7, 1e-6, 1e-6)
    ttft = dc.TTFTDistribution([0.3])
    device = dc.DeviceProfile(100.0, 20.0)
    rule = dc.MigrationRule(cost, dc.LengthDistribution([200], [1]), ttft, device)
    load = dc.Workload([0.0], [20], [200])
    result = dc.simulate(load, dc.plan_device_only(), dc.ServerProfile(ttft, 50.0), device, cost, rule, ttft_s=[0.3])
    assert 1 < result.migrated_at[0] < 10
    assert result.delay_num[0] == 0
    assert result.tbt_p99_s[0] == pytest.approx(1 / 4.8)
    assert result.cost[0] < 0.3 * result.cost_without[0]
    assert result.device_share == 1.0
    assert result.server_share == 0.0  # what a hand-over prefills is not the budget's


def test_nothing_migrates_where_decoding_costs_the_same():
    cost = dc.CostModel(0, 1e-6, 0, 1e-6)
    ttft, device = dc.TTFTDistribution([0.3]), dc.DeviceProfile(100.0, 20.0)
    rule = dc.MigrationRule(cost, dc.LengthDistribution([200], [1]), ttft, device)
    assert rule.target is None
    load = dc.Workload([0.0], [20], [200])
    result = dc.simulate(load, dc.plan_device_only(), dc.ServerProfile(ttft, 50.0), device, cost, rule, ttft_s=[0.3])
    assert result.migrated_at[0] == 0


@pytest.mark.parametrize(
    "bad", [{"reading_rate": 0}, {"reading_rate": None}, {"takeover_quantile": 1.5}, {"cost": 3}]
)
def test_bad_rules_are_named(bad):
    good = {
        "cost": dc.CostModel(1, 1, 1, 1),
        "output_tokens": dc.LengthDistribution([5], [1]),
        "server_ttft": dc.TTFTDistribution([1.0]),
        "device": dc.DeviceProfile(1.0, 1.0),
    }
    with pytest.raises(dc.InputError, match=next(iter(bad))):
        dc.MigrationRule(**(good | bad))


@pytest.mark.parametrize(("prefill_rate", "reading_rate"), [(1e-18, 4.8), (80.0, 1e20)])
def test_a_take_over_that_never_ends_is_never_begun(prefill_rate, reading_rate):
    cost, ttft = dc.CostModel(1e-7, 6e-7, 0, 0), dc.TTFTDistribution([0.3])
    device = dc.DeviceProfile(prefill_rate, 10.0)
    rule = dc.MigrationRule(cost, dc.LengthDistribution.of([50]), ttft, device, reading_rate=reading_rate)
    assert rule.buffer_needed(5, 1) > 0
    assert not rule.moves(5, np.arange(1, 50), 0.0).any()
