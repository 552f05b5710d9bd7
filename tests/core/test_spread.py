"""A device whose TTFT is drawn around its line: against one request at a time, and against a slower device."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from tests.helpers.reference import race
from tests.helpers.strategies import devices, distributions, plans, rules

PRICES = dc.CostModel(1e-6, 2e-6, 3e-6, 5e-6)
ratios = st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 7.0]), min_size=1, max_size=6)
loads = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 30)), min_size=1, max_size=12).map(
    lambda rows: dc.Workload(np.arange(len(rows)) * 1.0, *np.array(rows).T)
)


def spreading(device, spread):
    return dataclasses.replace(device, spread=spread)


def columns(result):
    """Every array of a result, by name; the costs summed up."""
    found = {name: value for name, value in vars(result).items() if isinstance(value, np.ndarray)}
    return found | {name: getattr(result.ledger, name) for name in ("server_prefill", "device_prefill")}


@given(loads, plans(), distributions, devices, ratios, st.integers(0, 2**32 - 1))
def test_equals_the_event_by_event_reference(load, plan, ttft, device, spread, seed):
    device = spreading(device, spread)
    result = dc.simulate(load, plan, dc.ServerProfile(ttft, 50.0), device, rng=np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    server_s = ttft.sample(len(load), rng)
    drawn = [spread[int(u * len(spread))] for u in rng.random(len(load))]
    delays_s = plan.draw(load.prompt_tokens, rng)
    for i, length in enumerate(load.prompt_tokens.tolist()):
        device_s = (length / device.prefill_rate + device.startup) * drawn[i]
        expected, winner, started = race(*map(float, delays_s[:, i]), float(server_s[i]), device_s)
        assert result.ttft_s[i] == pytest.approx(expected, abs=1e-9)
        assert dc.End(result.winner[i]).name.lower() == winner
        assert [result.server_started[i], result.device_started[i]] == ["server" in started, "device" in started]


@given(loads, plans(), distributions, devices, rules(), st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0]))
def test_a_single_ratio_is_a_device_that_is_slower_by_it(load, plan, ttft, device, rule, ratio):
    """Also as the target of a hand-over, which the rule decides by the line that it knows."""
    slower = dc.DeviceProfile(device.prefill_rate / ratio, device.decode_rate, device.startup * ratio)
    server_s, delays_s = ttft.sample(len(load), np.random.default_rng(1)), plan.draw(load.prompt_tokens, _rng())
    one, other = (
        dc.simulate(
            load, plan, dc.ServerProfile(ttft, 50.0), d, PRICES, rule, ttft_s=server_s, delays_s=delays_s, rng=rng
        )
        for d, rng in ((spreading(device, [ratio]), _rng()), (slower, None))
    )
    compared = columns(other)
    for name, found in columns(one).items():
        assert found == pytest.approx(compared[name], rel=1e-12, nan_ok=True), name


def test_a_slow_device_takes_over_late():
    """The rule expects the line; a device that is four times slower delays the tokens that the line would not."""
    cost, ttft = dc.CostModel(1e-7, 6e-6, 0, 0), dc.TTFTDistribution([0.3])
    device, load = dc.DeviceProfile(100.0, 20.0), dc.Workload([0.0], [20], [100])
    rule = dc.MigrationRule(cost, dc.LengthDistribution([100], [1]), ttft, device)
    late = []
    for spread in (None, [4.0]):
        found = dc.simulate(
            load,
            dc.plan_server_only(),
            dc.ServerProfile(ttft, 50.0),
            spreading(device, spread),
            cost,
            rule,
            rng=_rng(),
        )
        assert found.migrated_at[0] > 0
        late.append(int(found.delay_num[0]))
    assert late[0] == 0 < late[1]


@given(loads, plans(), plans(), distributions, devices, ratios, st.integers(0, 2**32 - 1))
def test_policies_with_equal_seeds_see_equal_times(load, one, other, ttft, device, spread, seed):
    zero, server = np.zeros((2, len(load))), dc.ServerProfile(ttft, 50.0)
    runs = [
        dc.simulate(load, plan, server, spreading(device, spread), delays_s=zero, rng=np.random.default_rng(seed))
        for plan in (one, other)
    ]
    assert np.array_equal(runs[0].ttft_s, runs[1].ttft_s)
    exact = dc.simulate(load, one, server, device, delays_s=zero, rng=np.random.default_rng(seed))
    by_server = (runs[0].winner == dc.End.SERVER) & (exact.winner == dc.End.SERVER)
    assert np.array_equal(runs[0].ttft_s[by_server], exact.ttft_s[by_server])  # a spread changes no server's time


@given(loads, plans(), distributions, devices, ratios)
def test_given_times_of_both_endpoints_replace_the_spread(load, plan, ttft, device, spread):
    times, delays_s = np.full((2, len(load)), 0.01), plan.draw(load.prompt_tokens, _rng())
    one, other = (
        dc.simulate(load, plan, dc.ServerProfile(ttft, 50.0), d, ttft_s=times, delays_s=delays_s)
        for d in (device, spreading(device, spread))
    )
    assert np.array_equal(one.ttft_s, other.ttft_s)


@given(loads, plans(), distributions, devices, ratios, st.integers(0, 2**32 - 1))
def test_one_request_after_the_other_needs_no_queue(load, plan, ttft, device, spread, seed):
    device, server = spreading(device, spread), dc.ServerProfile(ttft, 50.0)
    apart = dc.Workload(load.arrival_s * 1e4, load.prompt_tokens, load.output_tokens)
    queued = dc.simulate_queue(apart, plan, server, device, rng=np.random.default_rng(seed))
    alone = dc.simulate(apart, plan, server, device, rng=np.random.default_rng(seed))
    assert queued.ttft_s == pytest.approx(alone.ttft_s, abs=1e-9)
    assert np.array_equal(queued.winner, alone.winner)


def test_ratios_of_mean_one_keep_the_mean():
    rng, n = np.random.default_rng(5), 200_000
    spread = rng.lognormal(0, 0.5, 400)
    device = dc.DeviceProfile(40.0, 14.0, 0.05, spread=spread / spread.mean())
    load = dc.Workload(np.zeros(n), rng.integers(1, 80, n), np.ones(n))
    server = dc.ServerProfile(dc.TTFTDistribution([1.0]), 50.0)
    found = dc.simulate(load, dc.plan_device_only(), server, device, rng=rng)
    error = (found.ttft_s - device.ttft(load.prompt_tokens)).std() / np.sqrt(n)
    assert found.ttft_s.mean() == pytest.approx(device.ttft(load.prompt_tokens).mean(), abs=5 * error)
    assert found.ttft_s.std() > 1.2 * device.ttft(load.prompt_tokens).std()
    drawn = device.ratios(n, rng)
    for ratio in np.quantile(device.spread, [0.1, 0.5, 0.9]):
        assert np.mean(drawn <= ratio) == pytest.approx(np.mean(np.array(device.spread) <= ratio), abs=0.005)


def test_plans_keep_to_the_line():
    device = dc.DeviceProfile(40.0, 14.0, 0.05)
    wide, lengths, ttft = spreading(device, [0.5, 1.5]), [10, 20, 40], dc.TTFTDistribution(np.linspace(0.2, 0.9, 200))
    assert np.array_equal(wide.ttft(lengths), device.ttft(lengths))
    plan = dc.plan_optimal(lengths, ttft, wide, 0.4, dc.Constraint.DEVICE)
    assert np.array_equal(plan.delays_s, dc.plan_optimal(lengths, ttft, device, 0.4, dc.Constraint.DEVICE).delays_s)
    assert np.array_equal(plan.expected_shares(lengths, ttft, wide), plan.expected_shares(lengths, ttft, device))


def test_a_profile_with_a_spread_is_a_value():
    given_ratios = np.array([0.5, 1.5])
    one, other = (dc.DeviceProfile(40.0, 14.0, spread=given_ratios) for _ in range(2))
    given_ratios[0] = 9.0
    assert one == other == dc.DeviceProfile(**dataclasses.asdict(one))
    assert hash(one) == hash(other)
    assert one != dc.DeviceProfile(40.0, 14.0)
    assert one.spread == (0.5, 1.5)
    assert dc.DeviceProfile(40.0, 14.0).ratios(3).tolist() == [1.0, 1.0, 1.0]


@given(st.floats(10, 500), st.floats(0, 2), st.integers(0, 2**32 - 1))
def test_a_fit_keeps_its_ratios_if_asked(rate, startup, seed):
    lengths = np.array([8, 64, 256, 1024] * 3)
    times = (lengths / rate + startup) * np.random.default_rng(seed).uniform(0.9, 1.1, lengths.size)
    fitted = dc.DeviceProfile.fit(lengths, times, 20.0, spread=True)
    assert np.array(fitted.spread) * fitted.ttft(lengths) == pytest.approx(times)
    bare = dc.DeviceProfile.fit(lengths, times, 20.0)
    assert bare.spread is None
    assert dataclasses.replace(fitted, spread=None) == bare


@pytest.mark.parametrize("bad", [[], [0.0], [1.0, -1.0], [np.nan], [np.inf], ["a"], [[1.0]], 1.0, "wide"])
def test_bad_spreads_are_named(bad):
    with pytest.raises(dc.InputError, match="spread"):
        dc.DeviceProfile(40.0, 14.0, spread=bad)


def test_a_spread_without_a_generator_is_refused():
    load, device = dc.Workload([0.0], [5], [7]), dc.DeviceProfile(40.0, 14.0, spread=[1.0])
    server = dc.ServerProfile(dc.TTFTDistribution([0.5]), 50.0)
    with pytest.raises(dc.InputError, match="rng"):
        dc.simulate(load, dc.plan_server_only(), server, device, ttft_s=[0.5])
    with pytest.raises(dc.InputError, match="n must"):
        device.ratios(0, _rng())


def _rng():
    return np.random.default_rng(7)
