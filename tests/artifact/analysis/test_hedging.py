"""Hedged requests: what they spend, and SingleR against a search over all delays and probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from artifact.analysis.hedging import hedged_request, single_r
from disco_core.beyond.expectation import expected
from disco_core.beyond.optimal import solve

CONSTRAINTS = pytest.mark.parametrize("constraint", dc.Constraint)
BUDGETS = st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.7, 1.0])
DEVICE = dc.DeviceProfile(50.0, 10.0, 0.02)


def made(seed):
    rng = np.random.default_rng(seed)
    return rng.integers(3, 60, 30), dc.TTFTDistribution(rng.lognormal(-1, 1, 60))


@CONSTRAINTS
@given(seed=st.integers(0, 2**32), budget=BUDGETS)
def test_both_keep_within_the_budget_and_the_optimum_is_no_worse(constraint, seed, budget):
    seen, ttft = made(seed)
    least = solve(seen, ttft, DEVICE, budget, constraint, quantile=0.9, growth=np.inf)
    for plan in (
        hedged_request(seen, ttft, DEVICE, budget, constraint),
        single_r(seen, ttft, DEVICE, budget, constraint, quantile=0.9),
    ):
        found = expected(plan, seen, ttft, DEVICE)
        assert found.shares[constraint.end] <= budget + 1e-12
        assert found.shares[1 - constraint.end] == 1.0
        assert least.deadline_s <= found.quantile(0.9) + 1e-9


@CONSTRAINTS
@given(seed=st.integers(0, 2**32), budget=BUDGETS)
def test_no_delay_and_probability_within_the_budget_beats_single_r(constraint, seed, budget):
    seen, ttft = made(seed)
    best = expected(single_r(seen, ttft, DEVICE, budget, constraint, 0.9), seen, ttft, DEVICE).quantile(0.9)
    rng = np.random.default_rng(seed)
    for delay, part in zip(rng.choice(np.append(ttft.values_s, 0), 40), rng.random(40), strict=True):
        delays = np.zeros((2, 1, 2))
        delays[constraint.end] = [delay, np.inf]
        found = expected(dc.DispatchPlan("any", [1], delays, [[part, 1 - part]]), seen, ttft, DEVICE)
        if found.shares[constraint.end] <= budget:
            assert best <= found.quantile(0.9) + 1e-9


@CONSTRAINTS
@given(seed=st.integers(0, 2**32), budget=BUDGETS)
def test_of_delays_with_the_same_quantile_single_r_has_the_least_mean(constraint, seed, budget):
    seen, ttft = made(seed)
    ours = expected(single_r(seen, ttft, DEVICE, budget, constraint, 0.9), seen, ttft, DEVICE)
    rng = np.random.default_rng(seed)
    first = ttft.values_s if constraint is dc.Constraint.DEVICE else DEVICE.ttft(seen)
    for delay in rng.choice(np.append(first, 0), 20):
        delays = np.zeros((2, 1, 2))
        delays[constraint.end] = [delay, np.inf]
        always = expected(dc.DispatchPlan("any", [1], delays, [[1, 0]]), seen, ttft, DEVICE)
        part = min(1.0, budget / always.shares[constraint.end]) if always.shares[constraint.end] else 1.0
        found = expected(dc.DispatchPlan("any", [1], delays, [[part, 1 - part]]), seen, ttft, DEVICE)
        if found.quantile(0.9) <= ours.quantile(0.9):
            assert found.mean_s >= ours.mean_s - 1e-9


def test_a_hedged_request_waits_for_the_quantile_of_the_other_endpoint():
    ttft = dc.TTFTDistribution(np.arange(1, 101) / 100)
    device_plan = hedged_request([5, 50], ttft, DEVICE, 0.3, dc.Constraint.DEVICE)
    assert device_plan.draw([5], np.random.default_rng(0))[dc.End.DEVICE].tolist() == [0.95]
    scarce = hedged_request([5, 50], ttft, DEVICE, 0.02, dc.Constraint.DEVICE)
    assert scarce.probability[0] == pytest.approx([0.4, 0.6])
    lengths = [10] * 8 + [20, 40]
    server_plan = hedged_request(lengths, ttft, DEVICE, 1.0, dc.Constraint.SERVER, level=0.9)
    delay = server_plan.delays_s[dc.End.SERVER, 0, 0]
    assert delay == DEVICE.ttft(20)
    assert expected(server_plan, lengths, ttft, DEVICE).shares[dc.End.SERVER] == pytest.approx(40 / 140)


@pytest.mark.parametrize("make", [hedged_request, single_r])
def test_bad_arguments_are_named(make):
    ttft = dc.TTFTDistribution([0.1, 0.2])
    with pytest.raises(dc.InputError, match="budget"):
        make([5], ttft, DEVICE, 1.2, dc.Constraint.DEVICE)
    with pytest.raises(dc.InputError, match="constraint"):
        make([5], ttft, DEVICE, 0.2, "device")
    with pytest.raises(dc.InputError, match="in \\[0, 1\\]"):
        make([5], ttft, DEVICE, 0.2, dc.Constraint.DEVICE, 1.2)
