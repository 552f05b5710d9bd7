"""Halves of a record: what a plan does with requests, against independent computations, and their bands."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from artifact.pair import splits
from disco_core.beyond.expectation import expected
from disco_core.beyond.length_dependence import LengthDependence
from disco_core.beyond.optimal import plan_optimal
from disco_core.cost import Constraint
from disco_core.dispatch import DispatchPlan, plan_disco, plan_stochastic
from disco_core.latency import DeviceProfile, ServerProfile, TTFTDistribution
from disco_core.simulate import simulate
from disco_core.workload import LengthDistribution, Workload
from tests.helpers import strategies
from tests.helpers.reference import race

BUDGETS = (0.1, 0.3, 0.6, 1.0)
records = st.lists(st.tuples(st.integers(1, 14), st.integers(1, 40)), min_size=1, max_size=25).map(
    lambda rows: (np.array([l for l, _ in rows]), np.array([ms / 1000 for _, ms in rows]))
)


def by_events(plan, lengths, ttft_s, device):
    """Every choice of every request, one at a time: TTFTs with their chances, and what was prefilled on average."""
    found, prefilled = [], {"server": 0.0, "device": 0.0}
    for l, server_s, device_s in zip(lengths, ttft_s, device.ttft(lengths), strict=True):
        row = next((i for i, planned in enumerate(plan.prompt_tokens) if planned >= l), len(plan.prompt_tokens) - 1)
        for choice, chance in enumerate(plan.probability[row]):
            if chance > 0:
                first_s, _, started = race(*plan.delays_s[:, row, choice], server_s, device_s)
                found.append((first_s, chance))
                for end in started:
                    prefilled[end] += chance * l
    return sorted(found), {end: total / lengths.sum() for end, total in prefilled.items()}


@given(strategies.plans(), records, strategies.devices)
@settings(max_examples=300, deadline=None)
def test_a_run_is_the_race_of_every_request(plan, record, device):
    lengths, ttft_s = record
    times, shares = by_events(plan, lengths, ttft_s, device)
    got = splits.run(plan, lengths, ttft_s, device)
    assert got["mean_s"] == pytest.approx(math.fsum(t * chance for t, chance in times) / lengths.size)
    assert (got["server_share"], got["device_share"]) == pytest.approx((shares["server"], shares["device"]))
    reached = itertools.accumulate(chance for _, chance in times)
    enough = (t for (t, _), mass in zip(times, reached, strict=True) if mass >= 0.99 * lengths.size - 1e-6)
    assert got["p99_s"] == pytest.approx(next(enough))


@given(strategies.plans(), records, strategies.devices, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_simulated_requests_agree(plan, record, device, seed):
    """A plan without chance gives the simulator's TTFTs exactly; one with it, in the mean over many draws."""
    lengths, ttft_s = record
    many = 1 if (plan.probability.max(axis=1) == 1).all() else 400
    load = Workload(np.arange(lengths.size * many), np.tile(lengths, many), np.ones(lengths.size * many, int))
    server = ServerProfile(TTFTDistribution(ttft_s), 50.0)
    result = simulate(load, plan, server, device, rng=np.random.default_rng(seed), ttft_s=np.tile(ttft_s, many))
    got = splits.run(plan, lengths, ttft_s, device)
    error = 1e-12 if many == 1 else 6 * result.ttft_s.std() / math.sqrt(result.ttft_s.size) + 1e-9
    assert got["mean_s"] == pytest.approx(result.ttft_s.mean(), abs=error)
    if many == 1:
        assert got["device_share"] == pytest.approx(result.device_share)
        assert got["server_share"] == pytest.approx(result.server_share)
        assert got["p99_s"] == np.sort(result.ttft_s)[math.ceil(0.99 * lengths.size - 1e-9) - 1]


@given(strategies.plans(), strategies.lengths, strategies.distributions, strategies.devices)
@settings(max_examples=60, deadline=None)
def test_with_every_ttft_at_every_length_it_is_the_expectation(plan, lengths, ttft, device):
    assume((ttft.values_s > 0).all())
    every = np.array(list(itertools.product(lengths, ttft.values_s.repeat(counts_of(ttft)))))
    got = splits.run(plan, every[:, 0].astype(int), every[:, 1], device)
    found = expected(plan, np.array(lengths), ttft, device)
    assert got["mean_s"] == pytest.approx(found.mean_s)


def counts_of(ttft):
    """How often each value of a distribution of at most 30 samples stands in it, up to a common factor."""
    chance = np.diff(ttft.cumulative, prepend=0.0)
    for n in range(1, 31):
        if np.allclose(chance * n, np.round(chance * n), atol=1e-9):
            return np.round(chance * n).astype(int)
    raise AssertionError("more than 30 samples")


small = st.lists(st.tuples(st.integers(1, 14), st.integers(1, 40)), min_size=1, max_size=8).map(
    lambda rows: (np.array([l for l, _ in rows]), np.array([ms / 1000 for _, ms in rows]))
)


@given(small, strategies.devices, st.sampled_from(Constraint), strategies.budgets)
@settings(max_examples=100, deadline=None)
def test_the_floor_is_the_best_choice_of_requests(record, device, constraint, budget):
    """Over all subsets of requests that get the constrained endpoint, one of them also with a chance in between."""
    lengths, ttft_s = record
    n, device_s = lengths.size, device.ttft(lengths)
    helper_s, other_s = (device_s, ttft_s) if constraint is Constraint.DEVICE else (ttft_s, device_s)
    allowed = budget * lengths.sum() * (1 + 1e-12)
    means, tails = [], []
    for helped in itertools.product((False, True), repeat=n):
        inside = np.array(helped)
        left = allowed - lengths[inside].sum()
        if left < 0:
            continue
        first_s = np.where(inside, np.minimum(helper_s, other_s), other_s)
        gains = np.append(0.0, np.minimum(left / lengths, 1.0) * (first_s - np.minimum(helper_s, other_s)))
        means.append(first_s.mean() - gains.max() / n)
        for one in range(n):  # the one whose chance lies in between
            chance = 1.0 if inside[one] else min(left / lengths[one], 1.0)
            best_s, weight = np.append(first_s, min(helper_s[one], other_s[one])), np.append(np.ones(n), chance)
            weight[one] -= chance
            order = np.argsort(best_s, kind="stable")
            reached = np.cumsum(weight[order])
            tails.append(best_s[order][np.flatnonzero(reached >= 0.99 * n - 1e-6)[0]])
    got = splits.floor(budget, constraint, lengths, ttft_s, device)
    assert got["mean_s"] == pytest.approx(min(means), abs=1e-12)
    assert got["p99_s"] == pytest.approx(min(tails), abs=1e-12)


@given(st.integers(100, 420), st.integers(0, 1000), st.sampled_from(Constraint), st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_the_floor_of_many_requests_is_a_linear_programme(n, seed, constraint, budget):
    rng = np.random.default_rng(seed)
    lengths, ttft_s = rng.integers(1, 60, n), rng.lognormal(-1, 0.8, n)
    device = DeviceProfile(60.0, 20.0, 0.1)
    helper_s, other_s = device.ttft(lengths), ttft_s
    if constraint is Constraint.SERVER:
        helper_s, other_s = other_s, helper_s
    got = splits.floor(budget, constraint, lengths, ttft_s, device)
    allowed = budget * lengths.sum()
    saved = np.maximum(other_s - helper_s, 0)
    most = -linprog(-saved, [lengths], allowed, bounds=(0, 1)).fun
    assert got["mean_s"] == pytest.approx((other_s.sum() - most) / n)

    def possible(t):
        """Whether at most 1 % of the requests are later than t in expectation."""
        rescued = ((other_s > t) & (helper_s <= t)).astype(float)
        best = linprog(-rescued, [lengths], allowed, bounds=(0, 1)).fun
        return (other_s > t).sum() + best <= 0.01 * n + 1e-6

    times = np.sort(np.append(ttft_s, device.ttft(lengths)))
    assert possible(got["p99_s"])
    assert not possible(times[np.searchsorted(times, got["p99_s"]) - 1])


@given(strategies.plans(), records, strategies.devices, st.sampled_from(Constraint))
@settings(max_examples=200, deadline=None)
def test_no_policy_is_below_the_floor_of_what_it_uses(plan, record, device, constraint):
    got = splits.run(plan, *record, device)
    least = splits.floor(min(1.0, got[f"{constraint.value}_share"]), constraint, *record, device)
    assert least["mean_s"] <= got["mean_s"] + 1e-12
    assert least["p99_s"] <= got["p99_s"] + 1e-12


def test_nor_is_a_random_one_that_helps_three_requests_by_half():
    """Of 150 requests 1.5 may be late: three with a chance of a half each, for the price of one and a half."""
    lengths, ttft_s = np.full(150, 10), np.append(np.full(147, 0.2), [5.0, 5.0, 5.0])
    lengths[-3:] = 20
    delays = np.array([[[0.0, 0.0], [0.0, 0.0]], [[np.inf, np.inf], [0.0, np.inf]]])
    plan = DispatchPlan("half of the long ones", np.array([10, 20]), delays, np.full((2, 2), 0.5))
    device = DeviceProfile(100.0, 20.0, 0.5)
    got = splits.run(plan, lengths, ttft_s, device)
    assert got["p99_s"] == pytest.approx(0.7)
    record = lengths, ttft_s, device
    assert splits.floor(got["device_share"], Constraint.DEVICE, *record)["p99_s"] == pytest.approx(0.7)
    assert splits.floor(got["device_share"] * 0.99, Constraint.DEVICE, *record)["p99_s"] == 5.0


def a_record(n=200, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(5, 90, n), rng.lognormal(-1, 0.7, n), DeviceProfile(80.0, 20.0, 0.1)


def test_every_policy_plans_within_the_budget():
    lengths, ttft_s, device = a_record()
    for constraint, b in itertools.product(Constraint, BUDGETS):
        found = splits.Past(lengths, ttft_s, device).plans(b, constraint)
        assert tuple(found) == splits.POLICIES
        for name in set(found) - {splits.SERVER, splits.DEVICE, "Stoch", "Stoch+"}:
            share = expected(found[name], lengths, TTFTDistribution(ttft_s), device).shares[constraint.end]
            assert share <= b + 1e-9, name


def test_where_ttft_depends_on_length_the_optimal_plan_knows_it():
    rng, device = np.random.default_rng(3), DeviceProfile(60.0, 20.0)
    lengths = rng.integers(1, 200, 400)
    for slope, depends in ((0.01, True), (0.0, False)):
        ttft_s = 0.1 + slope * lengths + rng.exponential(0.1, 400)
        plan = splits.Past(lengths, ttft_s, device).plans(0.3, Constraint.DEVICE)[splits.OPTIMAL]
        pooled = TTFTDistribution(ttft_s)
        keys = np.quantile(lengths, np.arange(1, splits.KEYS + 1) / splits.KEYS, method="inverted_cdf")
        by_length = LengthDependence.fit(lengths, ttft_s).ttft(keys)
        right, wrong = (by_length, pooled) if depends else (pooled, by_length)
        prompts = LengthDistribution.of(lengths)
        one, other = (plan_optimal(prompts, f, device, 0.3, Constraint.DEVICE).to_json() for f in (right, wrong))
        assert plan.to_json() == one
        assert (one != other) or not depends  # without a dependence the two may agree


@pytest.mark.parametrize("slope", [0.0, 0.01])
def test_too_few_samples_for_the_optimal_plan_are_no_warning(slope):
    rng = np.random.default_rng(4)
    lengths = rng.integers(1, 200, 40)
    past = splits.Past(lengths, 0.1 + slope * lengths + rng.random(40) / 9, DeviceProfile(60.0, 20.0))
    found = past.plans(0.3, Constraint.DEVICE)
    if not slope:
        np.testing.assert_array_equal(found[splits.OPTIMAL].delays_s, found["DiSCo"].delays_s)


def test_equal_seeds_give_equal_halves_and_others_others():
    given = *a_record(60), (0.3, 1.0), Constraint.DEVICE
    one, again, other = (splits.halves(*given, 3, seed) for seed in (1, 1, 2))
    assert one.equals(again)
    assert not one["mean_s"].equals(other["mean_s"])
    assert len(one) == 3 * 2 * (len(splits.POLICIES) + 1)


def test_a_plan_is_run_on_requests_that_it_does_not_know(monkeypatch):
    lengths, _, device = a_record(41)
    known, new = [], []
    monkeypatch.setattr(splits.Past, "plans", lambda past, b, c: known.append(past.ttft_s) or {"one": None})
    monkeypatch.setattr(splits, "run", lambda plan, l, ttft_s, d: new.append(ttft_s) or {})
    every = np.arange(1.0, 42.0)  # each request is recognised by its TTFT
    splits.halves(lengths, every, device, (0.3,), Constraint.DEVICE, 5, 0)
    for one, other in zip(known, new, strict=True):
        assert sorted(np.append(one, other)) == every.tolist()
        assert abs(one.size - other.size) <= 1
    assert len({tuple(one) for one in known}) == 5


def test_a_band_is_the_quantiles_over_splits():
    table = splits.halves(*a_record(60), (0.3,), Constraint.DEVICE, 40, 0)
    row = splits.banded(table, ["mean_s"], ["b", "policy"]).set_index("policy").loc["DiSCo"]
    values = table[table["policy"] == "DiSCo"]["mean_s"]
    assert row["mean_s"] == pytest.approx(values.mean())
    assert (row["mean_s_low"], row["mean_s_high"]) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def disco(lengths, ttft_s, device, count, seed):
    """As `halves`, of DiSCo alone, in a hundredth of the time: its mean TTFT for each split."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        known, new = np.array_split(rng.permutation(ttft_s.size), 2)
        plan = plan_disco(Constraint.DEVICE, lengths[known], TTFTDistribution(ttft_s[known]), 0.3)
        yield splits.run(plan, lengths[new], ttft_s[new], device)["mean_s"]


def test_the_short_cut_below_is_the_study_s():
    record = a_record(60)
    table = splits.halves(*record, (0.3,), Constraint.DEVICE, 4, 7)
    assert list(table[table["policy"] == "DiSCo"]["mean_s"]) == list(disco(*record, 4, 7))


def test_bands_contain_the_truth_about_as_often_as_they_say():
    """The truth: what a plan from all n requests does with new ones, of a known F that does not depend on length."""
    device, widths = DeviceProfile(80.0, 20.0, 0.1), {}
    _, many_s, _ = a_record(20_000, 99)
    for n in (50, 200):
        covered, wide = [], []
        for record in range(60):
            lengths, ttft_s, _ = a_record(n, record)
            low, high = np.quantile(list(disco(lengths, ttft_s, device, 60, record)), [0.025, 0.975])
            plan = plan_disco(Constraint.DEVICE, lengths, TTFTDistribution(ttft_s), 0.3)
            truth = splits.run(plan, np.random.default_rng(1).integers(5, 90, many_s.size), many_s, device)["mean_s"]
            covered.append(low <= truth <= high)
            wide.append(high - low)
        assert np.mean(covered) >= 0.85, n
        widths[n] = np.mean(wide)
    assert widths[50] / widths[200] == pytest.approx(2.0, rel=0.3)  # as 1 / sqrt(n)


def test_a_plan_for_fewer_lengths_takes_the_next_longer_or_the_longest():
    delays = np.array([[[0.0], [np.inf]], [[np.inf], [0.0]]])
    plan = DispatchPlan("short to the server", np.array([10, 20]), delays, np.ones((2, 1)))
    device = DeviceProfile(100.0, 20.0)
    got = splits.run(plan, np.array([5, 11, 500]), np.array([0.3, 9.0, 9.0]), device)
    assert got["mean_s"] == pytest.approx((0.3 + 0.11 + 5.0) / 3)
    assert got["server_share"] == pytest.approx(5 / 516)


def test_random_dispatch_is_weighted_not_drawn():
    device = DeviceProfile(100.0, 20.0)
    got = splits.run(plan_stochastic(0.25, Constraint.DEVICE), np.array([10, 30]), np.array([1.0, 2.0]), device)
    assert got["mean_s"] == pytest.approx(0.75 * 1.5 + 0.25 * 0.2)
    assert (got["server_share"], got["device_share"]) == pytest.approx((0.75, 0.25))
