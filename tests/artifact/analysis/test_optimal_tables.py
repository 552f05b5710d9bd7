"""Tables of the notebook `optimal`: against the rows that they summarise."""

import numpy as np
import pandas as pd
import pytest

import disco_core as dc
from artifact.analysis import optimal, optimal_tables
from artifact.analysis.optimal import DISCO, FLOOR, OPTIMAL, POLICIES
from artifact.analysis.optimal_tables import BY_LENGTH
from artifact.data import traces
from artifact.measure.optimal import HELD_OUT, IN_TIME, PAPER, RANDOM


def some_cells():
    """Two services with three cells each of random halves, and one of a later half; a third falls back."""
    rng, rows = np.random.default_rng(0), []
    for service, split, count in (("a", RANDOM, 3), ("a", IN_TIME, 1), ("b", RANDOM, 3), ("few", RANDOM, 3)):
        for b in range(count):
            numbers = {name: float(rng.normal()) for name in ("cut", "known_cut", "over_mean")}
            numbers |= {f"{name}_mean": float(rng.uniform(5, 20)) for name in ("cut", "known_cut", "guarded_cut")}
            numbers |= dict.fromkeys(("guarded_cut", "guarded_over_mean", "cut_alike", "over_mean_alike"), 1.0)
            numbers |= {"over_budget": 0.01 * b, "disco_over_budget": 0.0, "fallback": float(service == "few")}
            rows.append({"service": service, "split": split, "constrained": "device", "b": b} | numbers)
    services = [{"service": s, "group": g, "n": n} for s, g, n in (("a", PAPER, 300), ("b", HELD_OUT, 500))]
    services.append({"service": "few", "group": HELD_OUT, "n": 110})
    return {"cells": pd.DataFrame(rows), "services": pd.DataFrame(services)}


def test_services_are_summed_up_over_their_cells_and_those_that_fall_back_are_left_out():
    measured = some_cells()
    cells = optimal_tables.cells(measured)
    assert set(cells.service) == {"a", "b"}
    table = optimal_tables.by_service(cells, dc.Constraint.DEVICE).set_index("service")
    assert [*table.index] == ["a", "b"]  # the paper's first
    for service, row in table.iterrows():
        part = measured["cells"][(measured["cells"].service == service) & (measured["cells"].split == RANDOM)]
        assert row.cut == pytest.approx(sorted(part.cut)[1])
        assert row.reached == pytest.approx(100 * part.cut_mean.sum() / part.known_cut_mean.sum())
        assert row.over_budget == pytest.approx(1.0)  # points
    assert np.isnan(table.later_cut["b"])
    later = measured["cells"].query("split == @IN_TIME").cut.item()
    assert table.later_cut["a"] == pytest.approx(later)
    text = "\n".join(optimal_tables.said(table.reset_index()))
    assert f"{PAPER}, 1 services" in text
    assert f"{table.reached['a']:.0f} %" in text


def test_policies_stand_side_by_side_relative_to_the_rule():
    service = traces.service("gpt-4o-mini")
    study = optimal.OptimalStudy(traces.lengths("alpaca"), traces.devices(), (0.3,))
    runs = study.run({service.name: service})
    table = optimal_tables.side_by_side(runs).set_index(["constrained", "policy"])
    assert [*table.index] == [(end, policy) for end in ("device", "server") for policy in (*POLICIES, FLOOR)]
    for end in ("device", "server"):
        wide = runs[runs.constrained == end].pivot(index="device", columns="policy", values="p99_s")
        for policy in (*POLICIES, FLOOR):
            assert table.p99[end, policy] == pytest.approx((100 * wide[policy] / wide[DISCO]).median())
    assert np.isnan(table.way_p99["device", DISCO])
    assert 0 < table.way_p99["device", OPTIMAL] < 100


def test_where_ttft_grows_with_the_prompt_f_by_length_keeps_the_budget_and_cuts_p99():
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, 110, 600)
    pairs = pd.DataFrame({"prompt_tokens": tokens, "device_s": tokens / 250})
    pairs["server_s"] = tokens / 300 * rng.lognormal(0, 0.3, tokens.size)
    found = optimal_tables.by_length(pairs, (0.3,), 6, 0).set_index("policy")
    assert abs(found.used[BY_LENGTH] - 0.3) < 0.03
    assert abs(found.used[BY_LENGTH] - 0.3) < abs(found.used[DISCO] - 0.3)
    assert found.p99_s[BY_LENGTH] < found.p99_s[DISCO]


def test_where_it_does_not_f_by_length_is_the_plan_for_one_f():
    rng = np.random.default_rng(1)
    tokens = rng.integers(10, 110, 600)
    pairs = pd.DataFrame({"prompt_tokens": tokens, "device_s": tokens / 250})
    pairs["server_s"] = rng.lognormal(-1, 0.3, tokens.size)
    found = optimal_tables.by_length(pairs, (0.3,), 4, 0).set_index("policy")
    for value in ("used", "mean_s", "p99_s"):
        assert found[value][BY_LENGTH] == pytest.approx(found[value][OPTIMAL], rel=0.05)
