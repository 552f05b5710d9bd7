"""An elastic device against one request at a time, every assignment of levels, and every budget of a fine grid."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from disco_core.systems.elastic.device import (
    ElasticDevice,
    begun_tokens,
    elastic_device,
    move_up_rule,
    plan_prefill_work,
    scaled_levels,
)
from tests.helpers.reference import race
from tests.helpers.strategies import distributions, lengths

WHOLE = dc.DeviceProfile(31.32, 13.93)
RATIOS = {percent: percent / 100 for percent in (100, 80, 50, 30)}
LEVELS = scaled_levels(WHOLE, RATIOS, {percent: 0.31 + 0.69 * m for percent, m in RATIOS.items()})
budgets = st.sampled_from((0.0, 0.02, 0.1, 0.3, 0.6, 0.9, 1.0)) | st.floats(0, 1)
constraints = st.sampled_from(dc.Constraint)
deadlines_s = st.integers(0, 500).map(lambda ms: ms / 1000)


def all_of(percent, seen):
    """A device that answers everything with one level."""
    known = np.unique(seen)
    return ElasticDevice(LEVELS, known, np.full(known.size, percent))


def waits(plan, length):
    """The finite waits of the device that a plan can draw for a length, the latest last."""
    row = min(np.searchsorted(plan.prompt_tokens, length), plan.prompt_tokens.size - 1)
    rows = zip(plan.delays_s[dc.End.DEVICE, row], plan.probability[row], strict=True)
    return sorted(float(wait) for wait, chance in rows if chance > 0 and math.isfinite(wait))


@given(lengths, distributions, budgets, constraints, deadlines_s)
def test_the_level_is_the_largest_that_keeps_the_deadline(seen, ttft, budget, constraint, deadline_s):
    plan = dc.plan_disco(constraint, seen, ttft, budget)
    device = elastic_device(LEVELS, plan, seen, deadline_s)
    for length in set(seen):
        latest = [0.0, *waits(plan, length)][-1]
        first_s = {percent: latest + one.ttft(length) for percent, one in LEVELS.items()}
        keep = [percent for percent, at in first_s.items() if at <= deadline_s]
        assert device.level([length]) == (max(keep) if keep else 30)
        assert device.ttft(length) == LEVELS[int(device.level([length])[0])].ttft(length)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=3), distributions, budgets, constraints, deadlines_s)
def test_no_other_levels_miss_less_and_lose_less(seen, ttft, budget, constraint, deadline_s):
    plan = dc.plan_disco(constraint, seen, ttft, budget)
    known = [length for length in sorted(set(seen)) if waits(plan, length)]  # where the device may start at all

    def missed(levels):
        return sum(waits(plan, l)[-1] + LEVELS[p].ttft(l) > deadline_s for l, p in zip(known, levels, strict=True))

    if not known:
        return
    ours = elastic_device(LEVELS, plan, seen, deadline_s).level(known)
    for other in itertools.product(LEVELS, repeat=len(known)):
        assert missed(ours) <= missed(other)
        if missed(other) == 0:
            assert (ours >= np.array(other)).all()


@st.composite
def settings(draw):
    """Requests, a plan for them, server TTFTs and the delays drawn, all on a grid of milliseconds."""
    seen, ttft, constraint = np.array(draw(lengths)), draw(distributions), draw(constraints)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    plan = draw(
        st.sampled_from([dc.plan_disco(constraint, seen, ttft, draw(budgets)), dc.plan_stochastic(0.5, constraint)])
    )
    load = dc.Workload(np.zeros(seen.size), seen, rng.integers(1, 90, seen.size))
    drawn = {"ttft_s": ttft.sample(seen.size, rng), "delays_s": plan.draw(seen, rng)}
    return load, plan, dc.ServerProfile(ttft, 50.0), drawn


@given(settings(), deadlines_s)
def test_no_request_is_slower_than_with_the_whole_model_and_none_misses_that_the_smallest_keeps(setting, deadline_s):
    load, plan, server, drawn = setting
    device = elastic_device(LEVELS, plan, load.prompt_tokens, deadline_s)
    ours, whole, smallest = (
        dc.simulate(load, plan, server, one, **drawn) for one in (device, WHOLE, all_of(30, load.prompt_tokens))
    )
    assert (ours.ttft_s <= whole.ttft_s).all()
    assert (ours.ttft_s >= smallest.ttft_s).all()
    assert ((ours.ttft_s > deadline_s) == (smallest.ttft_s > deadline_s)).all()
    assert (ours.device_started == whole.device_started).all()  # a device is started as long as no token has come
    for i, length in enumerate(load.prompt_tokens):
        level = LEVELS[int(device.level([length])[0])]
        expected, winner, _ = race(*drawn["delays_s"][:, i], drawn["ttft_s"][i], float(level.ttft(length)))
        assert (ours.ttft_s[i], dc.End(ours.winner[i]).name.lower()) == (pytest.approx(expected), winner)


def test_lengths_that_are_not_listed_take_the_next_longer_ones_level():
    device = ElasticDevice(LEVELS, [10, 20, 40], [100, 50, 30])
    assert device.level([1, 10, 11, 20, 21, 40, 1000]).tolist() == [100, 100, 50, 50, 30, 30, 30]
    assert device.token_s([5, 15]) == pytest.approx([1 / 13.93, 1 / LEVELS[50].decode_rate])
    assert device.ttft([[10], [15]]).shape == (2, 1)
    assert device.takeover_s(62.64) == pytest.approx(2.0)  # the whole model's


def work(plan, seen, ttft, device):
    """Prefill of the device, counted one prompt, wait and server sample after the other, over that of all prompts."""
    spent = 0.0
    for length in seen:
        row = np.searchsorted(plan.prompt_tokens, length)
        for wait, chance in zip(plan.delays_s[dc.End.DEVICE, row], plan.probability[row], strict=True):
            late = 0.0 if chance == 0 else np.mean([wait < sample for sample in ttft.values_s])
            spent += length * RATIOS[int(device.level([length])[0])] * chance * late
    return spent / sum(seen)


@given(lengths, distributions, budgets, deadlines_s)
def test_a_budget_of_work_is_spent_up_to_the_next_budget_of_a_grid(seen, ttft, budget, deadline_s):
    plan, device = plan_prefill_work(LEVELS, seen, ttft, budget, deadline_s)
    assert work(plan, seen, ttft, device) <= budget + 1e-9
    assert plan.budget >= budget - 1e-9
    for more in np.linspace(0, 1, 41):
        other = dc.plan_device_constrained(seen, ttft, more)
        if more > plan.budget + 1e-6:
            assert work(other, seen, ttft, elastic_device(LEVELS, other, seen, deadline_s)) >= budget - 1e-6


def test_with_the_whole_model_alone_work_is_prompt_tokens():
    seen, ttft = [3, 5, 9], dc.TTFTDistribution([0.1, 0.2, 0.4, 2.0])
    plan, device = plan_prefill_work({100: WHOLE}, seen, ttft, 0.4, 0.3)
    assert plan.budget == pytest.approx(0.4, abs=1e-5)
    assert device.level(seen).tolist() == [100] * 3


def moved_at(level, prompt, output, reading_rate):
    """Tokens of a level until the whole model can continue, read one by one with a clock that starts at the first."""
    for n in range(1, output):
        shown = math.floor((n - 1) / level.decode_rate * reading_rate) + 1
        if n - shown >= math.ceil(reading_rate * (prompt + n) / WHOLE.prefill_rate):
            return n
    return output


@pytest.mark.parametrize("reading_rate", [4.8, 9.7])
def test_an_answer_moves_up_as_soon_as_the_reader_will_not_notice(reading_rate):
    rng, seen = np.random.default_rng(1), np.arange(5, 125)
    load = dc.Workload(np.zeros(seen.size), seen, rng.integers(1, 120, seen.size))
    device = ElasticDevice(LEVELS, seen, rng.choice([100, 80, 50, 30], seen.size))
    server = dc.ServerProfile(dc.TTFTDistribution([1.0]), 50.0)
    race = dc.simulate(load, dc.plan_device_only(), server, device, ttft_s=np.ones(seen.size))
    rule = move_up_rule(device, dc.LengthDistribution.of(load.output_tokens), reading_rate)
    found = begun_tokens(race, device, rule)
    for i, percent in enumerate(device.level(seen)):
        level, answer = LEVELS[int(percent)], (int(seen[i]), int(load.output_tokens[i]))
        whole = percent == 100  # which has nothing to move up to
        assert found[i] == (answer[1] if whole else moved_at(level, *answer, reading_rate)), (i, percent)
        if 0 < found[i] < answer[1]:  # the simulator's own hand-over, the level in the place of the server
            one = dc.Workload([0.0], [answer[0]], [answer[1]])
            as_server = dc.ServerProfile(dc.TTFTDistribution([0.0]), level.decode_rate)
            moved = dc.simulate(one, dc.plan_server_only(), as_server, WHOLE, rule=rule, ttft_s=[0.0])
            assert (moved.migrated_at[0], moved.delay_num[0]) == (found[i], 0)
    assert 0 < (found < load.output_tokens).mean() < 1


def test_an_answer_of_a_level_moves_to_the_server_as_simulate_moves_it():
    rng, seen = np.random.default_rng(2), np.arange(5, 125)
    load = dc.Workload(np.zeros(seen.size), seen, rng.integers(1, 120, seen.size))
    ttft, device = dc.TTFTDistribution(rng.lognormal(-1, 0.8, 300)), ElasticDevice(LEVELS, [40, 125], [50, 30])
    outputs = dc.LengthDistribution.of(load.output_tokens)
    rule = dc.MigrationRule(dc.CostModel(1, 1, 5, 9), outputs, ttft, device)
    times = {"ttft_s": ttft.sample(seen.size, rng)}
    plan, server = dc.plan_stochastic(0.7, dc.Constraint.DEVICE, both=True), dc.ServerProfile(ttft, 50.0)
    times["delays_s"] = plan.draw(seen, rng)
    moved = dc.simulate(load, plan, server, device, rule=rule, **times)
    expected = np.where(moved.migrated_at > 0, moved.migrated_at, load.output_tokens)
    assert (begun_tokens(moved, device, rule) == np.where(moved.winner == dc.End.DEVICE, expected, 0)).all()
    assert (begun_tokens(moved, device) == np.where(moved.winner == dc.End.DEVICE, load.output_tokens, 0)).all()
    # a level decodes at its own pace: the last of two tokens comes that much later
    two = dc.Workload([0.0, 0.0], [40, 41], [2, 2])
    fast = dc.MigrationRule(dc.CostModel(1, 1, 1, 1), outputs, ttft, device, reading_rate=1000.0)
    gaps = dc.simulate(two, dc.plan_device_only(), server, device, rule=fast, ttft_s=[9.0, 9.0]).tbt_p99_s
    assert gaps == pytest.approx([1 / LEVELS[50].decode_rate, 1 / LEVELS[30].decode_rate])


def test_what_the_server_hands_over_the_whole_model_continues():
    load, outputs = dc.Workload([0.0], [30], [100]), dc.LengthDistribution.of([100])
    device, ttft = ElasticDevice(LEVELS, [30, 1000], [50, 30]), dc.TTFTDistribution([0.1])
    rule = dc.MigrationRule(dc.CostModel(1, 9, 0, 0), outputs, ttft, WHOLE)
    whole, ours = (
        dc.simulate(load, dc.plan_server_only(), dc.ServerProfile(ttft, 50.0), one, rule=rule, ttft_s=[0.1])
        for one in (WHOLE, device)
    )
    assert ours.migrated_at[0] > 0
    assert (ours.migrated_at, ours.tbt_p99_s, ours.qoe) == (whole.migrated_at, whole.tbt_p99_s, whole.qoe)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: ElasticDevice({}, [1], [1]), "levels must be"),
        (lambda: ElasticDevice({100: 3.0}, [1], [100]), "levels must be"),
        (lambda: ElasticDevice(LEVELS, [1, 2], [100]), "one level for each"),
        (lambda: ElasticDevice(LEVELS, [2, 1], [100, 30]), "ascend"),
        (lambda: ElasticDevice(LEVELS, [1], [40]), "no level 40.*100, 80, 50, 30"),
        (lambda: scaled_levels(WHOLE, {100: 1.0}, {90: 1.0}), "same levels"),
        (lambda: scaled_levels(WHOLE, {100: 0.0}, {100: 1.0}), "prefill"),
        (lambda: elastic_device(LEVELS, dc.plan_device_only(), [1], -1.0), "deadline_s"),
        (lambda: begun_tokens(None, all_of(30, [1])), "race"),
    ],
)
def test_a_mistake_is_one_clear_line(build, said):
    with pytest.raises(dc.InputError, match=said):
        build()
