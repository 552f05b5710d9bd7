"""Devices that scatter around their line: what the committed tables give, and what the study makes of them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import disco_core as dc
from artifact.analysis import residuals
from artifact.data import traces
from artifact.errors import TraceError
from tests.helpers.strategies import devices, distributions, plans

MODELS = ["Llama-3.2-3B", "Phi-3", "Qwen3-4B", "Gemma-3n-4B"]


PROMPT = dc.LengthDistribution([8, 20, 60], [3, 4, 1])


def study():
    return residuals.Residuals({"command-r": traces.service("command-r")}, PROMPT)


@pytest.mark.parametrize("part", residuals.PARTS)
def test_a_device_has_the_quantiles_of_its_table(part):
    table = traces.table("device_residuals_as_parsed")
    found = residuals.devices(part)
    assert list(found) == MODELS
    for name, device in found.items():
        rows = table[(table.model == name) & (table.part == part)]
        spread = dc.TTFTDistribution(device.spread)
        assert np.array_equal(spread.quantile(rows.level - 1e-9), rows.ratio)
        assert spread.mean == pytest.approx(1, abs=0.006)  # least squares keep the mean time, not the mean ratio
        assert spread.quantile(0.05) < 0.9 < 1.08 < spread.quantile(0.95)


def test_the_tables_describe_the_same_requests():
    table, ratios = traces.table("device_ttft_as_parsed"), traces.table("device_residuals_as_parsed")
    assert table[table.part == "all"].n.sum() == 3971
    counts = table.set_index(["model", "part"]).n
    for (model, part), rows in ratios.groupby(["model", "part"]):
        assert set(rows.n) == {counts[model, part]}
    for model, parts in counts.unstack().iterrows():
        assert parts["first half"] + parts["second half"] == parts["all"], model
        assert parts.filter(like="eighth").sum() == parts["all"]
    assert ((table.low < table.pearson) & (table.pearson < table.high)).all()
    assert np.allclose(table.pearson**2, table.r_squared, atol=2e-4)  # a line of least squares
    assert table.ratio_to_all.between(0.9, 1.15).all()


def test_a_line_is_exact_and_has_the_slope_of_its_part():
    table = traces.table("device_ttft_as_parsed").set_index(["model", "part"])
    for part in ("all", "first half", "second half"):
        for name, line in residuals.lines(part).items():
            row = table.loc[name, part]
            assert line.spread is None
            assert line.ttft(100) == pytest.approx(100 * row.s_per_token + row.startup_s)
            assert line.decode_rate == row.decode_tok_per_s


def test_a_damaged_table_is_named(monkeypatch):
    whole = traces.table

    def cut(name):
        table = whole(name)
        return table[table.level < 0.9] if "residuals" in name else table

    monkeypatch.setattr(traces, "table", cut)
    with pytest.raises(TraceError, match="device_residuals_as_parsed"):
        residuals.devices()


def test_nothing_changes_where_nothing_scatters():
    exact = {"steady": dc.DeviceProfile(60.0, 10.0, 0.1, spread=[1.0, 1.0])}
    runs = study().exact_and_real(exact, [0.3, 0.7])
    assert len(runs) == 2 * 2 * 3
    assert not runs[["mean", "p99", "moved"]].any(axis=None)
    assert not residuals.cuts(runs).change.any()


@given(plans(), distributions, devices, st.lists(st.sampled_from([0.5, 1.0, 1.5, 7.0]), min_size=1, max_size=4))
def test_expectations_are_those_of_every_case_in_turn(plan, ttft, device, spread):
    """Each length, choice, server TTFT and ratio as one request of `simulate`, with its probability."""
    assume(plan.constraint is not None)
    device = dataclasses.replace(device, spread=spread)
    lengths = np.array([1, 5, 11])
    prompts = dc.LengthDistribution(lengths, [3, 4, 1])
    entry = np.minimum(np.searchsorted(plan.prompt_tokens, lengths), plan.prompt_tokens.size - 1)
    cases = [
        (l, *plan.delays_s[:, e, k], s, (l / device.prefill_rate + device.startup) * r, n * p / len(spread) * mass)
        for l, n, e in zip(lengths, np.array([3, 4, 1]) / 8, entry, strict=True)
        for k, p in enumerate(plan.probability[e])
        for s, mass in zip(ttft.values_s, np.diff(ttft.cumulative, prepend=0.0), strict=True)
        for r in spread
    ]
    tokens, server_wait, wait, server_s, device_s, mass = np.array(cases).T
    load = dc.Workload(np.zeros(tokens.size), tokens, tokens)
    times, delays = np.stack([server_s, device_s]), np.stack([server_wait, wait])
    run = dc.simulate(load, plan, dc.ServerProfile(ttft, 50.0), device, ttft_s=times, delays_s=delays)
    found = residuals.evaluate(plan, prompts, ttft, device)
    started = (run.server_started, run.device_started)[plan.constraint.end]
    assert found["mean_s"] == pytest.approx(mass @ run.ttft_s, abs=1e-9)
    # sums that tie exactly may be rounded to either side
    assert found["share"] == pytest.approx((mass * tokens) @ started / (mass @ tokens), abs=1e-9) or _ties(
        times, delays
    )
    order = np.argsort(run.ttft_s)
    late = 1 - np.cumsum(mass[order])
    expected = run.ttft_s[order][np.argmax(late <= 0.01 + 1e-9)]
    assert found["p99_s"] == pytest.approx(expected, abs=2e-8)


def _ties(times, delays):
    return (np.abs(delays[0] - (delays[1] + times[1])) < 1e-9).any() or (
        np.abs(delays[1] - (delays[0] + times[0])) < 1e-9
    ).any()


def test_the_simulator_draws_what_is_expected():
    device, ttft, n = residuals.devices()["Llama-3.2-3B"], traces.service("command-r").ttft, 200_000
    plan, rng = dc.plan_server_constrained(PROMPT, 0.4), np.random.default_rng(2)
    load = dc.Workload.sample(n, PROMPT, PROMPT, rng)
    drawn = dc.simulate(load, plan, dc.ServerProfile(ttft, 50.0), device, rng=rng)
    expected, exact = (
        residuals.evaluate(plan, PROMPT, ttft, one) for one in (device, dataclasses.replace(device, spread=None))
    )
    assert np.mean(drawn.ttft_s > expected["p99_s"]) == pytest.approx(0.01, abs=5 * np.sqrt(0.01 / n))
    assert np.mean(drawn.ttft_s > exact["p99_s"]) < 0.008
    assert expected["mean_s"] == pytest.approx(drawn.ttft_s.mean(), abs=5 * drawn.ttft_s.std() / np.sqrt(n))
    assert expected["share"] == pytest.approx(drawn.budget_used, abs=0.005)


def test_the_rules_of_the_paper_spend_the_same_on_any_device():
    runs = study().exact_and_real({"phone": residuals.devices()["Phi-3"]}, [0.2, 0.6])
    assert not runs[runs.policy != "optimal"].moved.any()


def test_cuts_are_averaged_over_budgets_before_they_are_compared():
    cell = {"service": "s", "device": "d", "constrained": "device"}
    rows = [
        cell | {"b": b, "policy": policy, "p99_s": exact, "real_p99_s": real}
        for b, policy, exact, real in [
            (0.1, "DiSCo", 0.5, 0.9),
            (0.1, "Stoch", 1.0, 1.0),
            (0.2, "DiSCo", 1.0, 1.0),
            (0.2, "Stoch", 1.0, 2.0),
        ]
    ]
    found = residuals.cuts(pd.DataFrame(rows)).iloc[0]
    assert (found.exact, found.real, found.change) == pytest.approx((25, 30, 5))


def test_a_plan_of_the_same_line_is_not_outdated(monkeypatch):
    lines = residuals.lines
    monkeypatch.setattr(residuals, "lines", lambda part="all": lines("all"))
    assert not study().drifted([0.3])[["mean", "p99", "moved"]].any(axis=None)
    monkeypatch.undo()
    assert study().drifted([0.3])[["mean", "p99"]].any(axis=None)
