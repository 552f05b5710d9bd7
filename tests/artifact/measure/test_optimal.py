"""The optimal plan on requests that it was not planned with: splits, comparisons and tables."""

import numpy as np
import pytest

import disco_core as dc
from artifact.analysis.optimal import DISCO, FLOOR, OPTIMAL, POLICIES
from artifact.data import traces
from artifact.measure import optimal
from artifact.measure.optimal import DAYS, HELD_OUT, IN_TIME, PAPER, RANDOM, Series
from tests.helpers.measuring import a_run

PROMPTS, PHONE = traces.lengths("alpaca"), traces.devices()["Pixel 7 Pro + BLOOM-560M"]


def a_series(n, *, hours=None, name="a service", group=PAPER):
    values = np.random.default_rng(n).lognormal(-0.5, 0.6, n)
    times_s = None if hours is None else np.linspace(0, 3600 * hours, n, endpoint=False)
    return Series(name, group, values, times_s, "made up")


def test_halves_share_no_request_and_leave_none_out():
    series = a_series(301, hours=5)
    found = [*optimal.splits(series, 3, np.random.default_rng(0))]
    assert [kind for kind, *_ in found] == [RANDOM] * 3 + [IN_TIME]
    for _, past, future in found:
        assert (past.size, future.size) == (150, 151)
        assert sorted([*past, *future]) == sorted(series.ttft_s)
    assert not np.array_equal(found[0][1], found[1][1])
    assert (found[3][1] == series.ttft_s[:150]).all()


def test_days_are_planned_one_after_the_other_where_they_are_full():
    full, sparse = a_series(1800, hours=70), a_series(1400, hours=70)
    days = [
        (past, future) for kind, past, future in optimal.splits(full, 1, np.random.default_rng(0)) if kind == DAYS
    ]
    assert len(days) == 2
    assert (days[0][1] == days[1][0]).all()
    assert sum(past.size for past, _ in days) + days[1][1].size == 1800
    assert DAYS not in {kind for kind, *_ in optimal.splits(sparse, 1, np.random.default_rng(0))}
    assert {kind for kind, *_ in optimal.splits(a_series(50), 2, np.random.default_rng(0))} == {RANDOM}


@pytest.mark.parametrize("constraint", dc.Constraint)
def test_who_plans_for_the_requests_that_come_reaches_all_that_is_known(constraint):
    ttft = dc.TTFTDistribution(a_series(150).ttft_s)
    numbers, found = optimal.compared(ttft, ttft, PROMPTS, PHONE, 0.4, constraint)
    assert tuple(found) == POLICIES
    assert numbers["cut"] == pytest.approx(numbers["known_cut"], abs=1e-6)
    assert numbers["over_budget"] <= 1e-9
    assert numbers["over_mean_alike"] <= 1 + 1e-6
    assert numbers["cut_alike"] >= -1e-9
    assert not numbers["fallback"]


@pytest.mark.parametrize("constraint", dc.Constraint)
def test_a_plan_made_with_other_requests_is_judged_at_the_share_and_mean_that_it_has(constraint):
    past, future = (dc.TTFTDistribution(a_series(n).ttft_s * scale) for n, scale in ((200, 1.0), (210, 1.3)))
    numbers, found = optimal.compared(past, future, PROMPTS, PHONE, 0.3, constraint)
    ours = found[OPTIMAL]
    # counted request by request, on draws of lengths and TTFTs in proportion
    plan = dc.plan_optimal(PROMPTS, past, PHONE, 0.3, constraint)
    load = dc.Workload.sample(200_000, PROMPTS, PROMPTS, np.random.default_rng(0))
    drawn = dc.simulate(load, plan, dc.ServerProfile(future, 50.0), PHONE, rng=np.random.default_rng(1))
    assert drawn.budget_used - 0.3 == pytest.approx(numbers["over_budget"], abs=0.01)
    assert drawn.ttft_s.mean() == pytest.approx(ours["mean_s"], rel=0.01)
    # nothing that knows the future does better with the same share and mean
    assert numbers["known_cut"] >= numbers["cut"] - 1e-6
    rule = dc.plan_disco(constraint, PROMPTS, future, min(ours["used"], 1.0))
    its = dc.simulate(load, rule, dc.ServerProfile(future, 50.0), PHONE, rng=np.random.default_rng(1))
    over = 100 * (drawn.ttft_s.mean() / its.ttft_s.mean() - 1)
    assert numbers["over_mean"] == pytest.approx(over, abs=0.5)


def test_too_few_samples_are_counted_as_falling_back_without_a_warning():
    past, future = (dc.TTFTDistribution(a_series(n).ttft_s) for n in (60, 90))
    numbers, found = optimal.compared(past, future, PROMPTS, PHONE, 0.3, dc.Constraint.DEVICE)
    assert numbers["fallback"] == 1
    assert numbers["cut_alike"] == numbers["over_mean_alike"] == 0
    assert found[OPTIMAL] == found[DISCO]


def test_the_tables_hold_every_service_split_and_policy(tmp_path, monkeypatch):
    some = [a_series(220, hours=4), a_series(240, name="another", group=HELD_OUT)]
    monkeypatch.setattr(optimal, "all_series", lambda: some)
    run = a_run(tmp_path, "optimal", splits=2, budgets=[0.2, 0.5], cases=8)
    found = optimal.measure(run)
    assert found["services"][["service", "group", "n"]].to_numpy().tolist() == [
        ["a service", PAPER, 220],
        ["another", HELD_OUT, 240],
    ]
    cells = found["cells"].set_index(["service", "split"])
    assert cells.index.value_counts().to_dict() == {
        ("a service", RANDOM): 12,
        ("a service", IN_TIME): 12,
        ("another", RANDOM): 12,
    }
    assert (cells.xs(RANDOM, level="split").splits == 2).all()
    assert (cells.known_cut_mean >= cells.cut_mean - 1e-6).all()
    policies = found["policies"]
    assert set(policies.policy) == {*POLICIES, FLOOR}
    assert len(policies) == 2 * 3 * 2 * len({*POLICIES, FLOOR})
    assert found["programme"].groupby(["constrained", "repeat"]).size().tolist() == [2, 2, 2, 2]
    # numbers alone: no single TTFT of a service
    text = "".join(table.to_csv(index=False) for table in found.values())
    assert not any(f"{value:.9g}" in text for series in some for value in series.ttft_s[:50])


@pytest.mark.mirror
def test_services_that_are_held_out_have_enough_requests_and_none_is_the_papers():
    found = optimal.all_series()
    assert len({one.name for one in found}) == len(found)
    held = [one for one in found if one.group == HELD_OUT]
    assert len(held) >= 10
    assert all(one.ttft_s.size >= optimal.FEWEST for one in held)
    assert {one.name for one in found} - {one.name for one in held} == set(traces.paper_services())
    for one in found:
        assert (one.ttft_s > 0).all()
        assert one.times_s is None or (np.diff(one.times_s) >= 0).all()
