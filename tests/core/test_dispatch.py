"""Plans against a brute-force search in whole fractions, and against what the paper promises of their shares."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import disco_core as dc
from tests.helpers.strategies import BUDGETS, budgets, devices, distributions, lengths, plans, times_s


def start_probability(plan: dc.DispatchPlan, length: int, ttft: dc.TTFTDistribution) -> float:
    """P(device starts | length) of a plan whose server starts at once, straight from its entries."""
    row = list(plan.prompt_tokens).index(length)
    pairs = zip(plan.delays_s[dc.End.DEVICE, row], plan.probability[row], strict=True)
    return sum(p * np.mean(ttft.values_s > wait) for wait, p in pairs)


def search_device_constrained(
    seen: list[int], samples: list[float], b: Fraction, alpha: Fraction
) -> dict[int, Fraction]:
    """Every split of the lengths into helped-at-once, one boundary and tail; the one that spends b exactly."""
    n, total = len(samples), sum(seen)
    tails = [w for w in sorted(samples) if Fraction(sum(s <= w for s in samples), n) >= 1 - min(alpha, b)]
    tail = Fraction(sum(s > tails[0] for s in samples), n)
    count = Counter(seen)
    for boundary in sorted(count):
        fixed = sum(l * c * (1 if l < boundary else tail) for l, c in count.items() if l != boundary)
        at_boundary = (b * total - fixed) / (boundary * count[boundary])
        if tail <= at_boundary <= 1:
            return {l: at_boundary if l == boundary else Fraction(1) if l < boundary else tail for l in count}
    raise AssertionError("no split spends the budget")


@given(lengths, times_s, st.integers(0, 40), st.integers(0, 20))
def test_disco_d_is_the_split_that_spends_the_budget(seen, samples, b40, alpha40):
    b, alpha = Fraction(b40, 40), Fraction(alpha40, 40)
    samples = [s + 0.001 for s in samples]  # an answer at 0 s leaves nothing to spend a budget on
    ttft = dc.TTFTDistribution(samples)
    plan = dc.plan_device_constrained(seen, ttft, float(b), tail=float(alpha))
    expected = search_device_constrained(seen, samples, b, alpha)
    # where two splits spend b alike (a boundary at its limit), they start the device alike too
    for length, probability in expected.items():
        assert start_probability(plan, length, ttft) == pytest.approx(float(probability), abs=1e-9)


@given(lengths, distributions, devices)
def test_disco_d_spends_exactly_the_budget(seen, ttft, device):
    for b in BUDGETS:
        plan = dc.plan_device_constrained(seen, ttft, b)
        server, share = plan.expected_shares(seen, ttft, device)
        assert share == pytest.approx(min(b, float(ttft.sf(0.0))), abs=1e-9)
        assert server == 1.0


def test_disco_d_share_is_met_by_counting_drawn_requests():
    rng = np.random.default_rng(7)
    ttft = dc.TTFTDistribution(
        [0.2] * 50 + [0.3] * 30 + [1.0] * 15 + [4.0] * 5
    )  # atoms far larger than a budget step
    seen = rng.integers(5, 60, 400)
    for b in BUDGETS:
        plan = dc.plan_device_constrained(seen, ttft, b)
        asked = np.tile(seen, 2000)
        _, wait = plan.draw(asked, rng)
        started = wait < ttft.sample(asked.size, rng)
        assert (asked * started).sum() / asked.sum() == pytest.approx(b, abs=0.002)


@given(lengths, budgets)
def test_disco_s_is_the_largest_share_a_threshold_can_spend(seen, b):
    plan = dc.plan_server_constrained(seen, b)
    total, known = sum(seen), sorted(set(seen))
    shares = {th: sum(l for l in seen if l > th) / total for th in [0, *known]}
    best = max(share for share in shares.values() if share <= b)
    ends = plan.draw(np.array(seen), None)
    share = sum(l for l, delay in zip(seen, ends[dc.End.SERVER], strict=True) if delay == 0.0) / total
    assert share == pytest.approx(best, abs=1e-12)
    one_length = max(seen.count(l) * l for l in known) / total
    assert b - one_length < share + 1e-12
    assert share <= b + 1e-12
    assert np.all(ends[dc.End.DEVICE] == 0.0)


@given(lengths, distributions, budgets, budgets)
def test_disco_is_the_plan_of_the_constrained_endpoint(seen, ttft, b, tail):
    expected = {
        dc.Constraint.DEVICE: dc.plan_device_constrained(seen, ttft, b, tail),
        dc.Constraint.SERVER: dc.plan_server_constrained(seen, b),
    }
    for constraint, one in expected.items():
        plan = dc.plan_disco(constraint, seen, ttft, b, tail=tail)
        assert (plan.name, plan.constraint, plan.budget) == (one.name, constraint, b)
        for array in ("prompt_tokens", "delays_s", "probability"):
            assert np.array_equal(getattr(plan, array), getattr(one, array))


@pytest.mark.parametrize("constraint", dc.Constraint)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"constraint": "device"}, "constraint"),
        ({"ttft": [0.3]}, "ttft"),
        ({"tail": 1.5}, "tail"),
        ({"budget": -0.1}, "budget"),
    ],
)
def test_disco_refuses_what_either_plan_would(constraint, change, says):
    asked = {"constraint": constraint, "prompt_tokens": [3], "ttft": dc.TTFTDistribution([0.3]), "budget": 0.5}
    with pytest.raises(dc.InputError, match=says):
        dc.plan_disco(**asked | change)


@given(plans(), lengths, devices, distributions)
def test_draws_agree_with_expected_shares(plan, asked, device, ttft):
    """Draws and the closed form come from different code: count started prompts on many draws of few lengths."""
    rng = np.random.default_rng(0)
    many = np.repeat(asked, 4000)
    server_delay, device_delay = plan.draw(many, rng)
    server_first = server_delay + ttft.sample(many.size, rng)
    device_first = device_delay + device.ttft(many)
    # a tie of sums is a tie up to rounding, and the closed form, which subtracts, may round to its other side
    sums = (server_delay > 0) & (device_delay > 0)
    ties = np.isclose(server_first, device_delay) | np.isclose(device_first, server_delay)
    assume(not (sums & ties).any())
    counted = [(many * s).sum() / many.sum() for s in (server_delay < device_first, device_delay < server_first)]
    assert plan.expected_shares(asked, ttft, device) == pytest.approx(counted, abs=0.06)


@pytest.mark.parametrize("constraint", dc.Constraint)
@pytest.mark.parametrize("both", [False, True])
def test_stochastic_spends_the_budget_at_random(constraint, both):
    plan = dc.plan_stochastic(0.3, constraint, both=both)
    delays = plan.draw(np.full(200_000, 10), np.random.default_rng(1))
    started = np.isfinite(delays).mean(axis=1)
    constrained = constraint.end
    assert started[constrained] == pytest.approx(0.3, abs=0.005)
    assert started[1 - constrained] == pytest.approx(1.0 if both else 0.7, abs=0.005)


def test_plans_say_what_they_are():
    ttft, budget = dc.TTFTDistribution([0.1, 0.2, 0.9]), 0.25
    plans = {
        "DiSCo-D": dc.plan_device_constrained([5, 6], ttft, budget),
        "DiSCo-S": dc.plan_server_constrained([5, 6], budget),
        "Stoch-D": dc.plan_stochastic(budget, dc.Constraint.DEVICE),
        "Stoch-S": dc.plan_stochastic(budget, dc.Constraint.SERVER),
        "Stoch-D+": dc.plan_stochastic(budget, dc.Constraint.DEVICE, both=True),
        "Stoch-S+": dc.plan_stochastic(budget, dc.Constraint.SERVER, both=True),
    }
    for name, plan in plans.items():
        constraint = dc.Constraint.DEVICE if "-D" in name else dc.Constraint.SERVER
        assert (plan.name, plan.constraint, plan.budget) == (name, constraint, budget)
    for name, plan in {"server only": dc.plan_server_only(), "device only": dc.plan_device_only()}.items():
        assert (plan.name, plan.constraint) == (name, None)


def test_the_tail_is_five_percent_unless_said_otherwise():
    ttft = dc.TTFTDistribution(np.arange(1, 101) / 100)
    default, said = (dc.plan_device_constrained([5, 60, 70], ttft, 0.3, **tail) for tail in ({}, {"tail": 0.05}))
    assert np.array_equal(default.delays_s, said.delays_s)
    assert default.delays_s[dc.End.DEVICE, -1].tolist() == [0.95, 0.95]
    assert dc.plan_device_constrained([5, 60, 70], ttft, 0.3, tail=0.2).delays_s[dc.End.DEVICE, -1, 0] == 0.8


def test_a_plan_is_a_copy_of_its_arrays():
    delays, chance = np.zeros((2, 1, 1)), np.ones((1, 1))
    plan = dc.DispatchPlan("both", [1], delays, chance)
    delays[:] = np.inf
    assert np.all(plan.draw([5]) == 0)
    with pytest.raises(ValueError, match="read-only"):
        plan.delays_s[0] = 1.0


def test_unseen_lengths_take_the_next_longer_entry():
    plan = dc.plan_server_constrained([10, 10, 20, 40], 0.5)  # l_th = 20
    server_delay, _ = plan.draw(np.array([1, 10, 11, 20, 21, 40, 4000]))
    assert server_delay.tolist() == [np.inf, np.inf, np.inf, np.inf, 0, 0, 0]
    far = dc.plan_server_constrained([10, 10, 20, 400_000], 0.999995)  # too long for a table: searched
    assert far.draw(np.array([1, 10, 11, 400_001]))[0].tolist() == [np.inf, np.inf, 0, 0]


def test_baselines_use_one_endpoint():
    for plan, end in ((dc.plan_server_only(), dc.End.SERVER), (dc.plan_device_only(), dc.End.DEVICE)):
        delays = plan.draw(np.arange(1, 5))
        assert np.all(delays[end] == 0)
        assert np.all(np.isinf(delays[1 - end]))


def test_without_a_budget_the_device_is_never_started():
    ttft = dc.TTFTDistribution([0.1, 0.2])
    wait = dc.plan_device_constrained([5, 6], ttft, 0.0).draw(np.array([5, 6, 7]), np.random.default_rng(0))[1]
    assert np.all(np.isinf(wait))


@pytest.mark.parametrize("budget", [-0.1, 1.1, float("nan"), None, "half", "0.5", True])
def test_budget_outside_zero_to_one_is_named(budget):
    ttft = dc.TTFTDistribution([0.1])
    for make in (
        lambda: dc.plan_device_constrained([5], ttft, budget),
        lambda: dc.plan_server_constrained([5], budget),
        lambda: dc.plan_stochastic(budget, dc.Constraint.DEVICE),
        lambda: dc.plan_device_constrained([5], ttft, 0.5, tail=budget),
    ):
        with pytest.raises(dc.InputError, match=str(budget)):
            make()


@pytest.mark.parametrize(
    "bad", [[], [0], [-3], [float("nan")], [float("inf")], [2.5], [[1, 2]], [[1, 2], [3]], ["long"], [2**40], None]
)
def test_bad_lengths_are_named(bad):
    with pytest.raises(dc.InputError, match="prompt_tokens"):
        dc.plan_server_constrained(bad, 0.5)
    with pytest.raises(dc.InputError, match="prompt_tokens"):
        dc.plan_server_only().draw(bad)


def test_a_random_plan_asks_for_its_generator():
    with pytest.raises(dc.InputError, match="rng"):
        dc.plan_stochastic(0.5, dc.Constraint.SERVER).draw(np.array([3]))
    with pytest.raises(dc.InputError, match=r"Constraint\.DEVICE"):
        dc.plan_stochastic(0.5, "device")


def test_a_plan_that_starts_nobody_is_refused():
    never = np.full((2, 1, 1), np.inf)
    with pytest.raises(dc.InputError, match="neither end"):
        dc.DispatchPlan("none", np.array([1]), never, np.ones((1, 1)))
    for match, known, delays, chance in [
        ("0.5", [1], np.zeros((2, 1, 1)), [[0.5]]),
        ("-0.5", [1], np.zeros((2, 1, 2)), [[1.5, -0.5]]),
        ("ascend", [2, 1], np.zeros((2, 2, 1)), [[1.0], [1.0]]),
        ("lengths, choices", [1], np.zeros((2, 2, 1)), [[1.0]]),
        ("-1.0", [1], [[[-1.0]], [[0.0]]], [[1.0]]),
    ]:
        with pytest.raises(dc.InputError, match=match):
            dc.DispatchPlan("bad", known, delays, chance)
    one = ([1], np.zeros((2, 1, 1)), [[1.0]])
    with pytest.raises(dc.InputError, match="Constraint"):
        dc.DispatchPlan("bad", *one, "device", 0.5)
    with pytest.raises(dc.InputError, match="7"):
        dc.DispatchPlan("bad", *one, dc.Constraint.DEVICE, 7)
    idle = [[[0.0, np.inf]], [[0.0, np.inf]]]
    assert dc.DispatchPlan("never taken", [1], idle, [[1.0, 0.0]]).draw([3, 4], np.random.default_rng(0)).max() == 0


tenths = st.integers(0, 12).map(lambda n: n / 10)


@given(st.lists(tenths, min_size=1, max_size=6), tenths, tenths | st.just(np.inf), st.integers(1, 30))
def test_expected_shares_are_those_of_the_race_also_at_ties(samples, server_delay, device_delay, length):
    plan = dc.DispatchPlan("hedge", [1], np.array([[[server_delay]], [[device_delay]]]), [[1.0]])
    ttft, device, n = dc.TTFTDistribution(samples), dc.DeviceProfile(10.0, 10.0), len(samples)
    load = dc.Workload(np.zeros(n), np.full(n, length), np.ones(n))
    raced = dc.simulate(load, plan, dc.ServerProfile(ttft, 5.0), device, ttft_s=ttft.values_s)
    expected = plan.expected_shares([length], ttft, device)
    assert expected == pytest.approx([raced.server_share, raced.device_share], abs=1e-12)


def test_a_choice_that_is_never_taken_may_start_nothing():
    padded = [[[0.0, np.inf], [0.0, 0.0]], [[0.0, np.inf], [0.0, 1.0]]]
    plan = dc.DispatchPlan("padded", [10, 20], np.array(padded), [[1.0, 0.0], [0.5, 0.5]])
    shares = plan.expected_shares([5, 15], dc.TTFTDistribution([1.0]), dc.DeviceProfile(10, 10))
    assert shares == pytest.approx([1.0, 0.625])


@pytest.mark.parametrize(("n", "tail", "longest_wait"), [(10, 7, 3), (50, 9, 41)])
def test_the_tail_waits_for_the_quantile_itself(n, tail, longest_wait):
    """1 - 0.7 is a little more than 0.3."""
    plan = dc.plan_device_constrained([5, 9], dc.TTFTDistribution(range(1, n + 1)), tail / n, tail / n)
    taken = plan.delays_s[dc.End.DEVICE][plan.probability > 1e-9]
    assert set(taken) == {longest_wait}
