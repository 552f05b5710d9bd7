"""The best plan against a linear programme over all plans, and its certificate."""

import re
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from disco_core.beyond import optimal
from disco_core.beyond.expectation import expected
from disco_core.beyond.optimal import options
from tests.helpers.programme import Programme

LOOSE = 1e-9  # the programme's limits, moved by this much, bracket one that is met but for rounding
CONSTRAINTS = pytest.mark.parametrize("constraint", dc.Constraint)


def draw_samples(rng, many, smooth):
    return (rng.lognormal(-1, 1, many) if smooth else rng.integers(0, 12, many) / 100).tolist()


@st.composite
def cases(draw):
    """Few samples, with atoms or without; lengths, a device, a budget and a quantile."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    samples = draw_samples(rng, draw(st.integers(10, 16)), draw(st.booleans()))
    seen = rng.integers(1, draw(st.sampled_from([3, 12, 60])), draw(st.integers(1, 12)))
    device = dc.DeviceProfile(draw(st.sampled_from([10.0, 100.0, 2000.0])), 10.0, draw(st.sampled_from([0.0, 0.05])))
    budget = draw(st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.8, 1.0]) | st.floats(0, 1))
    return seen.tolist(), samples, device, budget, draw(st.sampled_from([0.5, 0.7, 0.9]))


def one_for_all(seen, samples):
    return dict.fromkeys(seen, samples)


def check_measures(found, programme, samples, device, budget):
    """The solution's numbers are those of its plan, and within the budget."""
    measured = programme.measure(found.plan, samples, device)
    assert [found.mean_s, found.deadline_s, found.share] == pytest.approx(measured, abs=1e-9)
    assert found.share <= budget + 1e-9
    return measured


@CONSTRAINTS
@given(case=cases(), growth=st.sampled_from([0.0, 0.01, 0.1, np.inf]))
def test_the_plan_is_the_programmes(constraint, case, growth):
    seen, samples, device, budget, q = case
    ttft, by_length = dc.TTFTDistribution(samples), one_for_all(seen, samples)
    programme = Programme(seen, by_length, device, constraint, q)
    found = optimal.solve(seen, ttft, device, budget, constraint, quantile=q, growth=growth)
    mean, deadline, _ = check_measures(found, programme, by_length, device, budget)
    limit = programme.measure(dc.plan_disco(constraint, seen, ttft, budget), by_length, device)[0] * (1 + growth)
    assert mean <= limit + 1e-9
    earliest, latest = (programme.least_deadline(budget, limit, slack) for slack in (LOOSE, -LOOSE))
    assert earliest - 1e-9 <= deadline <= latest + 1e-9
    assert mean == pytest.approx(programme.least_mean(budget, deadline * (1 + 1e-12), LOOSE), abs=1e-6)
    assert found.bound_s == pytest.approx(mean, abs=1e-9)


@CONSTRAINTS
@given(case=cases(), at=st.floats(0, 1))
def test_a_given_deadline_is_met_at_the_least_mean_or_refused_with_the_least(constraint, case, at):
    seen, samples, device, budget, q = case
    ttft, by_length = dc.TTFTDistribution(samples), one_for_all(seen, samples)
    programme = Programme(seen, by_length, device, constraint, q)
    times = programme.deadlines()
    t = float(times[int(at * (times.size - 1))])

    def solve(deadline_s):
        return optimal.solve(seen, ttft, device, budget, constraint, quantile=q, deadline_s=deadline_s)

    least = programme.least_deadline(budget, np.inf)
    if t < least * (1 - 1e-7):
        with pytest.raises(dc.InputError, match=rf"deadline_s {t:g} .*least feasible is ") as refused:
            solve(t)
        named = float(re.search(r"feasible is (\S+) s", str(refused.value))[1])
        assert least * (1 - 1e-8) <= named <= least * (1 + 1.1e-5)
        solve(named)  # what is named is feasible
        t = least
    found = solve(t)
    mean, deadline, _ = check_measures(found, programme, by_length, device, budget)
    assert deadline <= t * (1 + 1e-9)
    assert mean == pytest.approx(programme.least_mean(budget, t * (1 + 1e-12), LOOSE), abs=1e-6)
    assert found.bound_s == pytest.approx(mean, abs=1e-9)


@CONSTRAINTS
@given(case=cases(), seed=st.integers(0, 2**32), smooth=st.booleans())
def test_an_f_for_each_length_has_the_programmes_plan_too(constraint, case, seed, smooth):
    """Here the shortest prompts first is no longer the rule."""
    seen, _, device, budget, q = case
    rng = np.random.default_rng(seed)
    by_length = {l: draw_samples(rng, int(rng.integers(10, 13)), smooth) for l in seen}
    ttft = {l: dc.TTFTDistribution(samples) for l, samples in by_length.items()}
    programme = Programme(seen, by_length, device, constraint, q)
    found = optimal.solve(seen, ttft, device, budget, constraint, quantile=q, growth=np.inf)
    mean, deadline, _ = check_measures(found, programme, by_length, device, budget)
    earliest, latest = (programme.least_deadline(budget, np.inf, slack) for slack in (LOOSE, -LOOSE))
    assert earliest - 1e-9 <= deadline <= latest + 1e-9
    assert mean == pytest.approx(programme.least_mean(budget, deadline * (1 + 1e-12), LOOSE), abs=1e-6)
    assert found.bound_s == pytest.approx(mean, abs=1e-9)


@CONSTRAINTS
@given(case=cases(), higher=st.floats(0, 1))
def test_more_budget_is_never_worse(constraint, case, higher):
    seen, samples, device, budget, q = case
    ttft = dc.TTFTDistribution(samples)
    for limit, measure in (({"growth": np.inf}, "deadline_s"), ({"deadline_s": np.inf}, "mean_s")):
        few, more = (
            getattr(optimal.solve(seen, ttft, device, b, constraint, quantile=q, **limit), measure)
            for b in (budget, max(budget, higher))
        )
        assert more <= few + 1e-9


@given(case=cases(), growth=st.sampled_from([0.0, 0.1, np.inf]))
def test_with_the_device_constrained_at_most_two_lengths_mix(case, growth):
    seen, _, device, budget, q = case
    samples = np.random.default_rng(len(seen)).lognormal(-1, 1, 40)  # no two choices are equally good by chance
    ttft, constraint = dc.TTFTDistribution(samples), dc.Constraint.DEVICE
    plan = dc.plan_optimal(seen, ttft, device, budget, constraint, quantile=q, growth=growth)
    assert ((plan.probability > 1e-9).sum(axis=1) > 1).sum() <= 2


@CONSTRAINTS
@given(case=cases())
def test_simulating_the_plan_measures_what_is_expected_of_it(constraint, case):
    seen, samples, device, budget, q = case
    found = optimal.solve(seen, dc.TTFTDistribution(samples), device, budget, constraint, quantile=q)
    rng = np.random.default_rng(0)
    n = 40_000
    asked = rng.choice(seen, n)
    load = dc.Workload(np.zeros(n), asked, np.ones(n, np.int64))
    ran = dc.simulate(load, found.plan, dc.ServerProfile(dc.TTFTDistribution(samples), 10.0), device, rng=rng)
    # the empirical Bernstein bound at 1e-7, which allows for a choice so rare that it was never drawn
    longest_s = max(*samples, float(device.ttft(seen).max()))
    error = 6 * ran.ttft_s.std() / np.sqrt(n) + 40 * longest_s / n
    assert ran.ttft_s.mean() == pytest.approx(found.mean_s, abs=error)
    assert ran.budget_used == pytest.approx(found.share, abs=0.03)
    assert (ran.ttft_s > found.deadline_s * (1 + 1e-12)).mean() <= 1 - q + 6 * np.sqrt(q * (1 - q) / n)


@CONSTRAINTS
@given(seed=st.integers(0, 2**32), budget=st.sampled_from([0.05, 0.3, 0.7]), growth=st.sampled_from([0.01, np.inf]))
def test_with_waits_and_lengths_left_out_the_bound_still_holds(constraint, seed, budget, growth):
    rng = np.random.default_rng(seed)
    seen, ttft = rng.integers(5, 200, 300), dc.TTFTDistribution(rng.lognormal(-1, 1, 300))
    device = dc.DeviceProfile(50.0, 10.0)

    def solve(many, **limit):
        """With at most this many waits and lengths: the solution, and its bound."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(options, "ATOMS", many)
            patch.setitem(options.LENGTHS, constraint, many)
            found = optimal.solve(seen, ttft, device, budget, constraint, quantile=0.9, **limit)
            return found, found.bound_s

    coarse, bound = solve(30, growth=growth)
    if coarse.fallback:  # DiSCo's plan, which has no bound
        return
    assert coarse.plan.prompt_tokens.size <= 30
    assert coarse.share <= budget + 1e-9
    exact, exact_bound = solve(1000, deadline_s=coarse.deadline_s * (1 + 1e-9))
    assert exact_bound == pytest.approx(exact.mean_s, abs=1e-9)
    assert bound <= exact_bound + 1e-9
    assert coarse.mean_s >= exact_bound - 1e-9
    gaps = [found.mean_s - bound for found, bound in (solve(many, deadline_s=np.inf) for many in (30, 100))]
    assert gaps[1] < gaps[0]


def test_the_plan_is_never_behind_disco_where_lengths_are_taken_together():
    rng = np.random.default_rng(5)
    seen = np.round(rng.lognormal(4, 1.2, 20_000)).clip(1, 30_000).astype(int)
    ttft, device = dc.TTFTDistribution(rng.lognormal(-0.5, 2, 3000)), dc.DeviceProfile(51.8, 20.0)
    for budget in (0.3, 0.7, 0.9):
        found = optimal.solve(seen, ttft, device, budget, dc.Constraint.DEVICE)
        disco = dc.plan_disco(dc.Constraint.DEVICE, seen, ttft, budget)
        assert found.deadline_s <= expected(disco, seen, ttft, device).quantile(0.99)
        assert bool(found.fallback) == (found.plan.name == disco.name)


@pytest.mark.parametrize("seed", range(4))
def test_waits_that_were_left_out_are_added_where_the_plan_needs_them(seed):
    """Nearly all of the cut lies in a gap of F, beside which few waits are considered at first."""
    rng = np.random.default_rng(seed)
    samples = np.where(rng.random(3000) > 0.2, rng.normal(0.4, 0.03, 3000), rng.normal(6, 1, 3000)).clip(0.01)
    asked = rng.integers(10, 120, 400), dc.TTFTDistribution(samples), dc.DeviceProfile(51.8, 20.0), 0.2
    found = optimal.solve(*asked, dc.Constraint.DEVICE, deadline_s=4.7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "ATOMS", 4000)
        exact = optimal.solve(*asked, dc.Constraint.DEVICE, deadline_s=4.7)
    assert exact.mean_s - 1e-9 <= found.mean_s <= 1.005 * exact.mean_s
    assert found.bound_s <= exact.mean_s + 1e-9


def test_the_certificate_says_what_binds():
    rng = np.random.default_rng(3)
    seen, ttft = rng.integers(5, 80, 300), dc.TTFTDistribution(rng.lognormal(-0.5, 0.8, 400))
    asked = seen, ttft, dc.DeviceProfile(30.0, 10.0)
    of = {
        "default": optimal.solve(*asked, 0.3, dc.Constraint.DEVICE),
        "least mean": optimal.solve(*asked, 0.3, dc.Constraint.DEVICE, deadline_s=np.inf),
        "least P99": optimal.solve(*asked, 0.3, dc.Constraint.DEVICE, growth=np.inf),
        "free": optimal.solve(*asked, 1.0, dc.Constraint.DEVICE, deadline_s=np.inf),
    }
    assert {name: found.binds for name, found in of.items()} == {
        "default": ("budget", "deadline", "growth"),
        "least mean": ("budget",),
        "least P99": ("budget", "deadline"),
        "free": (),
    }
    disco = expected(dc.plan_disco(dc.Constraint.DEVICE, seen, ttft, 0.3), seen, ttft, asked[2])
    assert of["least mean"].mean_s < disco.mean_s < of["default"].mean_s <= disco.mean_s * (1 + 0.01 + 1e-9)
    assert of["least P99"].deadline_s < of["default"].deadline_s < disco.quantile(0.99)


def test_the_least_mean_within_reach_is_named():
    rng = np.random.default_rng(3)
    asked = rng.integers(5, 80, 300), dc.TTFTDistribution(rng.lognormal(-0.5, 0.8, 150)), dc.DeviceProfile(30.0, 10.0)
    with pytest.raises(dc.InputError, match=r"growth -0.5 .*a growth of (-0\.0\d+)") as refused:
        dc.plan_optimal(*asked, 0.3, dc.Constraint.DEVICE, growth=-0.5)
    least = float(str(refused.value).split()[-1])
    dc.plan_optimal(*asked, 0.3, dc.Constraint.DEVICE, growth=least)  # what is named is feasible
    with pytest.raises(dc.InputError, match="growth"):
        dc.plan_optimal(*asked, 0.3, dc.Constraint.DEVICE, growth=least - 1e-5)


def test_the_least_budget_for_a_deadline_is_named():
    rng = np.random.default_rng(3)
    asked = rng.integers(5, 20, 300), dc.TTFTDistribution(rng.lognormal(-0.5, 0.8, 150)), dc.DeviceProfile(30.0, 10.0)
    with pytest.raises(dc.InputError, match="the least budget for this deadline is") as refused:
        dc.plan_optimal(*asked, 0.01, dc.Constraint.DEVICE, deadline_s=1.5)
    least = float(str(refused.value).split()[-1])
    dc.plan_optimal(*asked, least, dc.Constraint.DEVICE, deadline_s=1.5)  # what is named is feasible
    with pytest.raises(dc.InputError, match="least budget"):
        dc.plan_optimal(*asked, least * 0.9999, dc.Constraint.DEVICE, deadline_s=1.5)


@CONSTRAINTS
@pytest.mark.parametrize("budget", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("samples", [[0.4] * 200, [0.0] * 200, [0.2] * 150 + [3.0] * 50, [0.2] * 199 + [3.0]])
def test_traces_of_one_and_two_values_have_a_plan(constraint, budget, samples):
    seen, ttft, device = [3, 9, 40], dc.TTFTDistribution(samples), dc.DeviceProfile(20.0, 10.0)
    found = optimal.solve(seen, ttft, device, budget, constraint)
    disco = expected(dc.plan_disco(constraint, seen, ttft, budget), seen, ttft, device)
    assert found.share <= budget + 1e-12
    assert found.deadline_s <= disco.quantile(0.99)
    assert found.gap_s == pytest.approx(0, abs=1e-9)


def test_without_a_budget_the_constrained_endpoint_is_never_started():
    ttft = dc.TTFTDistribution(np.arange(1, 301) / 100)
    for constraint in dc.Constraint:
        plan = dc.plan_optimal([5, 60], ttft, dc.DeviceProfile(20.0, 10.0), 0.0, constraint)
        assert np.all(np.isinf(plan.draw([5, 60, 70], np.random.default_rng(0))[constraint.end]))


@CONSTRAINTS
def test_too_few_samples_for_the_quantile_give_discos_plan_and_a_warning(constraint):
    seen, device = [5, 9, 60], dc.DeviceProfile(20.0, 10.0)
    few, enough = (dc.TTFTDistribution(np.arange(1, n + 1) / 10) for n in (99, 100))
    with pytest.warns(UserWarning, match=r"99 samples .* 100"):
        found = optimal.solve(seen, few, device, 0.3, constraint)
    disco = dc.plan_disco(constraint, seen, few, 0.3)
    assert found.plan.name == disco.name
    assert np.array_equal(found.plan.delays_s, disco.delays_s)
    assert "99 samples" in found.fallback
    assert np.isnan(found.bound_s)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert optimal.solve(seen, enough, device, 0.3, constraint).fallback == ""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"budget": 1.1}, "budget"),
        ({"budget": None}, "budget"),
        ({"quantile": 1.0}, "quantile must be below 1"),
        ({"quantile": 1.2}, "quantile"),
        ({"growth": -1.5}, "growth"),
        ({"growth": float("nan")}, "growth"),
        ({"deadline_s": -1.0}, "deadline_s"),
        ({"deadline_s": "soon"}, "deadline_s"),
        ({"constraint": "device"}, "constraint"),
        ({"device": 30.0}, "device"),
        ({"ttft": [0.3]}, "ttft"),
        ({"ttft": {}}, "ttft"),
        ({"ttft": {5: 0.3}}, r"ttft\[5\]"),
        ({"ttft": {0: dc.TTFTDistribution([0.3])}}, "a length of ttft"),
        ({"prompt_tokens": []}, "prompt_tokens"),
    ],
)
def test_bad_arguments_are_named_in_one_line(change, says):
    asked = {
        "prompt_tokens": [3, 5],
        "ttft": dc.TTFTDistribution(np.arange(1, 200) / 100),
        "device": dc.DeviceProfile(20.0, 10.0),
        "budget": 0.5,
        "constraint": dc.Constraint.DEVICE,
    }
    with pytest.raises(dc.InputError, match=says) as refused:
        dc.plan_optimal(**asked | change)
    assert "\n" not in str(refused.value)
