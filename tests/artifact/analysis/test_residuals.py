"""Devices that scatter around their line: what the committed tables give, and what the study makes of them."""

import numpy as np
import pandas as pd
import pytest

import disco_core as dc
from artifact.analysis import residuals
from artifact.data import traces
from artifact.errors import TraceError

MODELS = ["Llama-3.2-3B", "Phi-3", "Qwen3-4B", "Gemma-3n-4B"]


def study(requests=400, seed=3):
    prompt = dc.LengthDistribution([8, 20, 60], [3, 4, 1])
    services = {name: traces.service(name) for name in ("command-r",)}
    return residuals.Residuals(services, prompt, prompt, requests, seed)


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


def test_a_cell_is_what_one_request_at_a_time_gives():
    """The device constrained, DiSCo: from the draws of the study, without `simulate`."""
    made, spread = study(), [0.5, 1.0, 2.5]
    device = dc.DeviceProfile(60.0, 10.0, 0.1, spread=spread)
    runs = made.exact_and_real({"phone": device}, [0.4])
    row = runs[(runs.constrained == "device") & (runs.policy == "DiSCo")].iloc[0]
    seeds = np.random.SeedSequence(3).spawn(4)
    load = dc.Workload.sample(400, made.prompt, made.answer, np.random.default_rng(seeds[0]))
    ttft = made.services["command-r"].ttft
    plan = dc.plan_device_constrained(made.prompt, ttft, 0.4)
    server_s = ttft.sample(400, np.random.default_rng(seeds[1]))
    wait_s = plan.draw(load.prompt_tokens, np.random.default_rng(seeds[2]))[dc.End.DEVICE]
    drawn = [spread[int(3 * u)] for u in np.random.default_rng(seeds[3]).random(400)]
    for ratios, prefix in ((np.ones(400), ""), (drawn, "real_")):
        device_s = [(l / 60 + 0.1) * r for l, r in zip(load.prompt_tokens.tolist(), ratios, strict=True)]
        first = [min(s, w + d) for s, w, d in zip(server_s, wait_s, device_s, strict=True)]
        assert row[f"{prefix}mean_s"] == pytest.approx(sum(first) / 400)
        assert row[f"{prefix}p99_s"] == pytest.approx(sorted(first)[395])
        started = load.prompt_tokens[wait_s < server_s].sum()
        assert row[f"{prefix}share"] == pytest.approx(started / load.prompt_tokens.sum())
    assert row["p99"] == pytest.approx(100 * (row["real_p99_s"] / row["p99_s"] - 1))
    assert row["mean"] == pytest.approx(100 * (row["real_mean_s"] / row["mean_s"] - 1))


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
