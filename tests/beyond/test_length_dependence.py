"""F conditional on prompt length: what it finds in samples of a known law, and what the plan gains."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

import disco_core as dc
from disco_core.beyond.length_dependence import LengthDependence


def observed(rng, n, slope):
    """n lengths, and TTFTs that grow with them by the slope."""
    length = rng.integers(10, 400, n)
    return length, (1 + slope * length) * rng.lognormal(-1.5, 0.4, n)


@given(st.integers(0, 2**32), st.integers(3, 60), st.integers(2, 30))
def test_the_correlation_is_spearmans(seed, n, distinct):
    rng = np.random.default_rng(seed)
    length, time = rng.integers(1, distinct + 1, n), rng.integers(1, distinct + 1, n) / 10
    found = LengthDependence.fit(length, time)
    if np.ptp(length) == 0 or np.ptp(time) == 0:
        assert np.isnan(found.correlation)
        assert (found.p_value, found.weight) == (1.0, 0.0)
    else:
        assert found.correlation == pytest.approx(spearmanr(length, time).statistic, abs=1e-12)


@pytest.mark.parametrize("slope", [0.003, 0.01, 0.1])
def test_a_known_dependence_is_found(slope):
    length, time = observed(np.random.default_rng(0), 4000, slope)
    found = LengthDependence.fit(length, time)
    assert found.p_value < 1e-6
    assert found.weight > 0.99
    by_length = found.ttft(length)
    shortest, longest = by_length[min(by_length)], by_length[max(by_length)]
    assert longest.mean / shortest.mean == pytest.approx((1 + slope * 399) / (1 + slope * 10), rel=0.1)


def test_independent_samples_are_rejected_as_often_as_the_level_says():
    rng = np.random.default_rng(1)
    found = [LengthDependence.fit(*observed(rng, 80, 0.0)) for _ in range(600)]
    for level in (0.05, 0.2):
        assert np.mean([one.p_value < level for one in found]) == pytest.approx(level, abs=0.03)
    none = [one for one in found if one.weight == 0]
    assert len(none) > 450
    length, time = observed(rng, 50, 0.0)
    falling = LengthDependence.fit(np.sort(length), np.sort(time)[::-1])
    assert falling.weight == 0
    assert np.array_equal(falling.ttft([5, 60]).values_s, np.sort(time))


def test_few_samples_are_shrunk_to_one_f_for_all():
    weights = []
    for n in (10, 30, 300):
        rng = np.random.default_rng(2)
        weights.append(np.mean([LengthDependence.fit(*observed(rng, n, 0.003)).weight for _ in range(50)]))
    assert weights[0] < weights[1] < weights[2]
    assert weights[0] < 0.6
    assert weights[2] > 0.9


def test_a_plan_by_length_spends_the_budget_that_disco_exceeds():
    rng = np.random.default_rng(3)
    past, future = observed(rng, 2000, 0.02), observed(rng, 20_000, 0.02)
    device, budget, constraint = dc.DeviceProfile(400.0, 20.0), 0.3, dc.Constraint.DEVICE
    by_length = LengthDependence.fit(*past).ttft(past[0])
    plans = {
        "DiSCo": dc.plan_disco(constraint, past[0], dc.TTFTDistribution(past[1]), budget),
        "by length": dc.plan_optimal(past[0], by_length, device, budget, constraint),
    }
    length, time = future
    load = dc.Workload(np.zeros(length.size), length, np.ones(length.size, np.int64))
    server = dc.ServerProfile(dc.TTFTDistribution(time), 20.0)
    ran = {name: dc.simulate(load, plan, server, device, rng=rng, ttft_s=time) for name, plan in plans.items()}
    assert ran["DiSCo"].budget_used > budget + 0.02
    assert ran["by length"].budget_used == pytest.approx(budget, abs=0.015)


def test_many_samples_and_lengths_make_few_and_small_distributions():
    rng = np.random.default_rng(4)
    length = rng.integers(1, 3000, 20_000)
    by_length = LengthDependence.fit(length, (1 + 0.01 * length) * rng.lognormal(0, 0.3, length.size)).ttft(length)
    assert max(by_length) == length.max()
    assert len(by_length) <= 64
    assert max(one.values_s.size for one in by_length.values()) <= 2000


@pytest.mark.parametrize(
    ("length", "time", "says"),
    [([], [], "prompt_tokens"), ([5, 6], [0.1], "ttft_s"), ([5, 6], [0.1, -1], "ttft_s"), ([0, 6], [1, 2], "prompt")],
)
def test_bad_samples_are_named(length, time, says):
    with pytest.raises(dc.InputError, match=says):
        LengthDependence.fit(length, time)


def test_answers_at_once_stay_answers_at_once():
    length = np.arange(1, 101)
    found = LengthDependence.fit(length, np.where(length % 10 == 0, 0.0, length / 100))
    assert found.weight > 0
    assert all(one.values_s[0] == 0 for one in found.ttft(length).values())
