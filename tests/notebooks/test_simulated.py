"""Notebooks that simulate: values of the exhibits that `make quick` made."""

import numpy as np
import pandas as pd
import pytest

from artifact.analysis import energy
from artifact.analysis.forecasts import PREDICTORS, REFERENCES
from artifact.data import traces
from artifact.files import ROOT
from artifact.publish import claims
from artifact.publish.parameters import common
from artifact.publish.run import run
from tests.helpers.exhibits import claims as recorded
from tests.helpers.exhibits import provenance, verdicts

pytestmark = pytest.mark.slow


def test_traces_shows_the_published_quantiles(quick):
    quantiles = pd.read_csv(quick / "traces_quantiles.csv").set_index("service")
    published = pd.read_csv(ROOT / "data" / "ttft_series.csv").set_index("service")
    # the tables' P50 and P99 beside the series' own: two paths from the same public files
    for column, own in {"P50": "p50_s", "P99": "p99_s"}.items():
        assert np.allclose(quantiles[column][published.index], published[own], rtol=1e-3)
    limits = pd.read_csv(quick / "traces_constrained.csv")
    assert (limits.iloc[:, 3] < limits.iloc[:, 4]).all()


def test_dispatch_beats_random_dispatch_within_the_budget(quick):
    tail = pd.read_csv(quick / "dispatch_tail.csv")
    assert len(tail) == 4 * 3 * 2
    assert (tail.stoch_cut > 0).all()
    assert set(verdicts(quick, "dispatch")) == {"D1", "D2", "D4", "D8"}
    here = pd.read_csv(quick / "dispatch_this_machine.csv")
    assert set(here.device) == {"this machine"}
    for path in quick.glob("dispatch*.csv"):
        if path.stem != "dispatch_this_machine":
            assert "this machine" not in path.read_text()


def test_an_elastic_device_is_never_slower_and_its_answers_lose_less_when_they_move_up(quick):
    pairs = pd.read_csv(quick / "elastic_disco_pairs.csv")
    assert len(pairs) == 4 * 3 * 2
    assert (pairs.tokens_up < pairs.tokens_stays).all()
    points = pd.read_csv(quick / "elastic_disco_budget.csv").pivot(
        index=["service", "device", "constrained", "b"], columns="policy", values=["mean_s", "p99_s", "used"]
    )
    assert len(points) == 4 * 3 * 2 * 9
    for value in ("mean_s", "p99_s"):
        assert (points[value]["DiSCo, elastic"] <= points[value]["DiSCo"]).all()
    assert (points.used["DiSCo, elastic"] == points.used["DiSCo"]).all()
    assert verdicts(quick, "elastic_disco") == {"EL8": claims.PASS}


def render(stem, folder, **given):
    """Run a notebook as `make quick` does, its exhibits into a folder."""
    run(stem, folder, **common(stem, {"quick": True, "out": str(folder)}), **given)


def test_another_run_gives_the_same_bytes(tmp_path, quick):
    render("dispatch", tmp_path)
    first, second = ({path.name: path.read_bytes() for path in out.glob("dispatch_*")} for out in (quick, tmp_path))
    assert len(first) > 40
    assert first == second


@pytest.mark.mirror
def test_the_public_series_say_what_the_tables_say(tmp_path, quick):
    render("traces", tmp_path, source="public")
    public, tables = (pd.read_csv(f / "traces_quantiles.csv", index_col=0) for f in (tmp_path, quick))
    assert np.allclose(public[["mean", "P50", "P99"]], tables[["mean", "P50", "P99"]], rtol=0.02)
    assert "public series" in (tmp_path / "traces_quantiles.json").read_text()


def in_quick_size(folder, notebook):
    """Whether every simulated exhibit says that it is the quick size, and none has a band."""
    exhibits = [path.stem for path in folder.glob(f"{notebook}*.json") if not path.stem.endswith(".claims")]
    made = [provenance(folder, exhibit) for exhibit in exhibits]
    columns = {column for exhibit in exhibits for column in pd.read_csv(folder / f"{exhibit}.csv", nrows=0)}
    return (
        all(one["caption"].endswith(" Quick size.") for one in made if one["kind"] == "simulated")
        and all(one["parameters"]["quick"] for one in made)
        and not [column for column in columns if column.endswith(("_low", "_high"))]
    )


def test_sensitivity_finds_what_a_plan_for_another_world_spends(quick):
    varied = pd.read_csv(quick / "sensitivity_alpha.csv")
    planned = varied[(varied.varied == "alpha") | (varied.constrained == "device")]
    assert planned.deviation.abs().max() < 1e-9  # the world that was planned for: b exactly
    other = pd.read_csv(quick / "sensitivity_lengths.csv")
    # DiSCo-S on stretched prompts, counted one by one
    prompt = traces.lengths("alpaca")
    lengths = np.repeat(prompt.tokens, prompt.counts)
    threshold = min(l for l in prompt.tokens if lengths[lengths > l].sum() <= 0.5 * lengths.sum())
    row = other[(other.prompts == "2 times as long") & (other.constrained == "server") & (other.b == 0.5)]
    assert row.share.to_numpy() == pytest.approx(lengths[2 * lengths > threshold].sum() / lengths.sum(), rel=1e-5)
    days = pd.read_csv(quick / "sensitivity_days.csv")
    assert len(days) == 4 * 9 * 3
    few = pd.read_csv(quick / "sensitivity_samples.csv")
    spread = few.groupby("n").deviation.std()
    assert spread[1000] < spread[100] < spread[10]
    scattered = pd.read_csv(quick / "sensitivity_residuals.csv")
    cell = ["prompts", "service", "device", "constrained", "b"]
    assert not scattered.duplicated([*cell, "policy"]).any()
    assert (scattered.groupby(["prompts", "policy"]).size() == 4 * 4 * 2 * 3).all()
    assert not scattered[scattered.policy.isin(["DiSCo", "Stoch"])].moved.any()  # they hold no time of the device
    assert set(verdicts(quick, "sensitivity")) == {"S1", "R3"}
    assert in_quick_size(quick, "sensitivity")
    assert not any("this machine" in path.read_text() for path in quick.glob("sensitivity*.json"))


def test_qoe_judges_every_policy(quick):
    cells = pd.read_csv(quick / "qoe.csv")
    assert cells.qoe.between(0, 1).all()
    assert set(cells.policy) == {"server only", "device only", "Stoch", "Stoch+", "DiSCo", "DiSCo, no migration"}
    spending = cells[(cells.pace == "reading") & cells.b.notna()]
    assert (spending.groupby("policy").size() == 4 * 3 * 2 * 3).all()
    # a second endpoint can only be faster, so no worse than the endpoint that always starts
    least = spending[spending.policy == "Stoch+"].groupby(["constrained", "service", "device"]).qoe.min()
    alone = (
        cells[(cells.pace == "reading") & cells.b.isna()]
        .set_index(["constrained", "service", "device", "policy"])
        .qoe
    )
    for (constrained, service, device), lowest in least.items():
        always = {"device": "server only", "server": "device only"}[constrained]
        assert lowest >= alone[constrained, service, device, always] - 1e-6
    shown = pd.read_csv(quick / "qoe_table.csv")
    assert len(shown) == 2 * (2 + 2 * 4)
    assert verdicts(quick, "qoe").keys() == {"E1"}
    assert in_quick_size(quick, "qoe")
    assert verdicts(quick, "qoe")["E1"] in (claims.PASS, claims.DIFFERS)


def test_arrivals_holds_the_queue_beside_no_queue(quick):
    cuts = pd.read_csv(quick / "arrivals_tail.csv")
    assert len(cuts) == 4 * 3 * 2 * (1 + 5 * 6)
    table = pd.read_csv(quick / "arrivals_table.csv").set_index(["constrained", "load"])
    # what is dropped is not charged, so a constrained device can only spend less; a constrained server has no queue
    assert table["used_over_b"]["device"].iloc[-1] < table["used_over_b"]["device"].iloc[0]
    assert np.ptp(table["used_over_b"]["server"]) < 1e-9
    assert table["busy_stoch"].max() < 1
    assert verdicts(quick, "arrivals") == {id: claims.load()[id].expected for id in ("D12", "D12a")}


def test_prediction_keeps_the_budget_and_the_oracles_are_best(quick):
    shown = pd.read_csv(quick / "prediction_worth.csv")
    assert len(shown) == 2 * 9 * 8
    assert not [column for column in shown if column.endswith(("_low", "_high"))]
    assert provenance(quick, "prediction_worth")["caption"].endswith(" Quick size.")
    assert (shown.spent - shown.b).abs()[~shown.policy.str.startswith("oracle")].max() < 0.1
    for _, cell in shown.groupby(["device", "b"]):
        cell = cell.set_index("policy")
        within = cell[cell.spent <= cell.b]  # what spends more than the oracle may do better
        assert within.mean_s.min() >= cell.mean_s["oracle"] - 0.005
        assert within.p99_s.min() >= cell.p99_s["oracle of the tail"] - 1e-9
    errors = pd.read_csv(quick / "prediction_errors.csv")
    assert len(errors) == 5 * len([*PREDICTORS, *REFERENCES])
    assert verdicts(quick, "prediction").keys() == {"D13"}


def test_costs_says_what_the_tables_say(quick):
    assert len(pd.read_csv(quick / "costs_fit.csv")) == 8
    (verdict,) = recorded(quick, "costs").values()
    assert verdict["id"] == "D14"
    own = []  # R² as the square of Pearson's r, which a line with an intercept makes it
    for _, rows in energy.phone_tokens(traces.table("phones")).groupby(["device", "engine"]):
        own.append(np.corrcoef(rows.gflop, rows.joule)[0, 1] ** 2)
    assert verdict["ours"]["median"] == pytest.approx(np.median(own), rel=1e-5)
    assert verdict["verdict"] == (claims.PASS if np.median(own) >= 0.9 else claims.DIFFERS)
    ends = pd.read_csv(quick / "costs_prices.csv").set_index("endpoint")
    assert ends["prefill, $/1M"]["gpt-4o-mini"] == pytest.approx(0.15)
    phones = traces.table("phones")
    assert ends["decode, mJ"]["median measured phone"] == pytest.approx(phones.decode_mj_per_tok.median(), rel=1e-5)
    # a kilowatt-hour is 3.6 MJ: $0.15 buys a million tokens of 3.6 J each
    read = ends["prefill, $/1M"]["median measured phone"]
    assert read == pytest.approx(0.15 * phones.prefill_mj_per_tok.median() / 3600, rel=1e-5)
