"""Notebooks that measure, and those that show measurements: in the exhibits of `make quick`, and in small."""

import json
import re

import nbformat
import pandas as pd
import pytest

from artifact.data.model import smollm2_path
from artifact.files import DATA
from artifact.measure import objective_answers, overhead, store
from artifact.publish import claims, reference
from artifact.publish.run import run
from disco_core.endpoints.local_server import LocalServer
from tests.helpers.exhibits import claims as recorded
from tests.helpers.exhibits import provenance, verdicts

MEASURED = DATA / "measured"
pytestmark = pytest.mark.slow


def test_endpoints_fits_the_device_that_ran(quick):
    shown = pd.read_csv(quick / "endpoints_correlation.csv")
    device, servers = shown.iloc[0], shown.iloc[1:]
    assert device.pearson > 0.95
    assert servers.pearson.abs().max() < 0.3
    assert len(servers) == 6
    assert provenance(quick, "endpoints_ttft")["kind"] == "measured"
    assert verdicts(quick, "endpoints") == {"D9": claims.PASS}


def test_live_runs_every_policy_on_both_settings(quick):
    shown = pd.read_csv(quick / "live_ttft.csv")
    assert len(shown) == 2 * 6
    assert (shown[["mean_s_low", "p50_s", "p90_s"]] > 0).all(axis=None)
    asked = store.read(MEASURED, "live")["requests"]
    assert asked.failures.isna().all()
    # what was held is what the first token took at least, where the server alone answered
    alone = asked[asked.policy == "server only"]
    assert (alone.ttft_s >= alone.held_s).all()
    assert (alone[alone.setting != "raw"].held_s > 0).all()
    # an answer of two endpoints is as long as of one, and every token was charged to the endpoint that generated it
    assert (asked.tokens <= asked.server_decode + asked.device_decode).all()
    found = verdicts(quick, "live")
    assert set(found) == {"L1", "L2", "L3", "L4"}
    assert found["L4"] == claims.NOT_TESTED


def test_migration_saves_and_a_hand_over_is_exact(quick):
    cells = pd.read_csv(quick / "migration_cost.csv")
    assert len(cells) == 4 * 3 * 2 * 3  # services, phones, constraints, budgets in small
    assert cells.saving.between(0, 100).all()
    assert verdicts(quick, "migration").keys() == {"D3", "D5", "D5a", "D6", "D6a", "D11", "L5"}
    assert pd.read_csv(quick / "migration_exactness.csv").exact.all()
    assert "this machine" not in (quick / "migration_cost.csv").read_text()


def test_pd_device_answers_as_soon_as_the_cloud_and_loses_no_token(quick):
    found = store.read(MEASURED, "pd_device")
    asked, tokens = found["requests"], found["tokens"]
    assert asked.failures.isna().all()
    for _, answer in tokens.groupby(["policy", "request"]):
        assert answer.token.tolist() == list(range(len(answer)))
        assert answer.released_s.is_monotonic_increasing
        assert (answer.generated_s <= answer.released_s + 1e-6).all()
    both = asked[asked.policy != "device only"]
    assert (both.ttft_s <= both.held_s + 1.0).all()  # with the cloud's, or sooner
    assert verdicts(quick, "pd_device").keys() == {"P1", "P2", "P3"}
    cells = pd.read_csv(quick / "pd_device_lengths.csv")
    assert len(cells) == 4 * 4 * 8 * 4
    assert (cells.cloud_s >= 0).all()
    assert "this machine" not in (quick / "pd_device_lengths.json").read_text()


def test_overhead_judges_planning(quick):
    found = recorded(quick, "overhead")
    assert {id: one["verdict"] for id, one in found.items()} == {"D7": claims.PASS, "D7a": claims.PASS}
    rows = store.read("data/measured", "overhead")["values"]
    at = rows[(rows.unit == "s") & (rows.by == overhead.OURS) & (rows.n == overhead.PAPER)]
    ours = 1e3 * at[at.work == "plan DiSCo-S"].value.median()
    assert found["D7"]["ours"]["median"] == pytest.approx(ours, rel=1e-5)
    together = at.pivot(index="repeat", columns="work", values="value")
    together = 1e3 * (together["build F"] + together["plan DiSCo-D"]).median()
    assert found["D7a"]["ours"]["median"] == pytest.approx(together, rel=1e-5)
    for stem in ("overhead", "overhead_table", "overhead_memory"):
        assert provenance(quick, stem)["kind"] == "measured"


def test_elastic_judges_each_level_in_each_way(quick):
    assert set(verdicts(quick, "elastic")) == {"EL2", "EL3", "EL4", "EL6", "EL7"}
    scores = pd.read_csv(quick / "elastic_perplexity.csv").set_index(["percent", "method"]).perplexity
    levels = store.read(MEASURED, "elastic")["levels"].percent
    assert set(scores.index.get_level_values("percent")) == set(levels)
    assert scores.min() == scores[100].min()
    assert (pd.read_csv(quick / "elastic_latency.csv").query("percent == 100")[["ttft", "tpot"]] == 1).all(axis=None)
    assert pd.read_csv(quick / "elastic_layers.csv").anchor.sum() == 6
    accuracy = pd.read_csv(quick / "elastic_accuracy.csv")
    assert set(accuracy.task) == {"ARC-Easy", "PIQA", "OpenBookQA"}


def test_objectives_shows_every_pair_policy_and_request(quick):
    assert set(verdicts(quick, "objectives")) == {"EL1", "EL5"}
    found = store.read(MEASURED, "objectives")
    pairs = pd.read_csv(quick / "objectives_map.csv").set_index(["p", "m"])
    assert len(pairs) == len(found["answers"][["p", "m"]].drop_duplicates())
    assert (pairs.ttft.xs(100, level="m").sort_index().diff().dropna() > 0).all()
    assert pairs.accuracy.between(0, 100).all()
    table = pd.read_csv(quick / "objectives_policies.csv").set_index("policy")
    assert len(table) == 9
    assert table.in_time.idxmax() == "oracle"
    rows = pd.read_csv(quick / "objectives_met.csv")
    assert rows[rows.objective != "all"].requests.sum() == len(found["requests"])
    assert recorded(quick, "objectives")["EL5"]["ours"]["median"] == pytest.approx(
        table.gain["paper's labels"], rel=1e-5
    )
    compressed = pd.read_csv(quick / "objectives_compression.csv")
    assert set(compressed.method) == {"none", *objective_answers.METHODS}


def test_campaign_shows_what_became_of_every_stream(quick):
    streams = store.read(MEASURED, "campaign")["streams"]
    assert pd.read_csv(quick / "campaign.csv").streams.sum() == len(streams) == 1000
    table = pd.read_csv(quick / "campaign_table.csv").set_index("kind")
    assert (table.loc["all", "streams"], table.loc["none", "hit"]) == (1000, 0)
    assert recorded(quick, "campaign")["R1"]["ours"]["median"] == 100 - table.loc["all", "broken"] / 10


@pytest.mark.parametrize("name", [*reference.NAMES, *reference.OPTIONAL])
def test_what_measures_leaves_a_folder_that_is_read_and_judges_nothing(tmp_path, name):
    run(f"measure_{name}", tmp_path, quick=True, out=str(tmp_path / name))
    found = store.read(tmp_path, name)
    assert found.tables
    # with a second model or evaluated, with judges, with broken promises
    optional = {"perplexity", "verdicts", "violations", "recovery", "accuracy", "compression"}
    optional |= {"answers"} if name == "objectives" else set()
    assert all(len(table) for table_name, table in found.tables.items() if table_name not in optional)
    assert found.disturbed == "measured in its quick size, which is too small to judge"


def test_the_reference_is_complete_small_and_of_the_full_size():
    for name in reference.NAMES:
        assert store.read(MEASURED, name).disturbed == ""
    size = sum(path.stat().st_size for path in MEASURED.rglob("*") if path.is_file())
    assert size < reference.MOST_BYTES


def test_chat_answers_where_nobody_is_there(quick):
    done = nbformat.read(quick.parent / "notebooks" / "chat.ipynb", as_version=4)
    printed = "".join(
        output.get("text", "") for cell in done.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "first token after" in printed
    assert re.search(r"\b\d+ tokens by the (device|server)", printed)


def test_live_uses_a_server_with_a_key_and_never_shows_it(tmp_path, monkeypatch):
    key = "sk-a-key-that-must-not-appear"
    with LocalServer(smollm2_path(), api_key=key) as local:
        monkeypatch.setenv("OPENAI_API_KEY", key)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{local.url}/v1")
        asked = {"server": "openai:smollm2", "prompts": 3, "pairs": 6, "max_tokens": 6}
        run("measure_live", tmp_path, out=str(tmp_path / "live"), quick=True, **asked)
        run("live", tmp_path, out=str(tmp_path / "figures"), measurements=str(tmp_path))
    found = verdicts(tmp_path / "figures")
    assert found["L1"] == claims.NOT_TESTED
    reasons = {
        one["id"]: one["reason"] for one in json.loads((tmp_path / "figures" / "live.claims.json").read_text())
    }
    assert "quick size" in reasons["L4"]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert not any(key.encode() in content for content in written)


def test_optimal_shows_what_the_rules_leave_the_proof_and_other_requests(quick):
    gaps = pd.read_csv(quick / "optimal_gap.csv")
    assert len(gaps) == 4 * 3 * 2 * 9
    assert (gaps.least_s <= gaps.disco_s * (1 + 1e-6)).all()
    proofs = pd.read_csv(quick / "optimal_certificate.csv")
    assert len(proofs) == len(gaps)
    assert (proofs.bound_s <= proofs.mean_s * (1 + 1e-5)).all()
    assert (proofs.share <= proofs.b + 1e-5).all()
    found = recorded(quick, "optimal")
    assert found.keys() == {"O1", "O2", "O2a", "O3"}
    device = gaps[gaps.constrained == "device"]
    missed = 100 * (device.disco_s - device.least_s) / (device.alone_s - device.least_s)
    assert found["O2"]["ours"]["median"] == pytest.approx(missed.median(), rel=0.01)
    cells, services = (store.read(MEASURED, "optimal")[name] for name in ("cells", "services"))
    large = services[(services.group == "of the paper") & (services.n >= 200)].service
    rows = cells[(cells.split == "random halves") & (cells.constrained == "device") & cells.service.isin(large)]
    assert len(rows) == len(large) * 3 * 9
    assert found["O1"]["ours"]["median"] == pytest.approx(rows.cut.median(), rel=1e-4)
    assert provenance(quick, "optimal_gap")["kind"] == "computed"
    assert provenance(quick, "optimal_out_of_sample")["kind"] == "measured"
    # nothing that knows less than the clairvoyant scheduler is better
    table = pd.read_csv(quick / "optimal_policies.csv").set_index(["constrained", "policy"])
    assert (table.way_p99.dropna() <= 100).all()
    assert (table.way_mean.dropna() <= 100).all()


def test_load_judges_only_what_was_measured_in_full_and_shows_every_load(tmp_path):
    run("measure_load", tmp_path, quick=True, out=str(tmp_path / "load"))
    run("load", tmp_path, quick=True, measurements=str(tmp_path), out=str(tmp_path / "figures"))
    asked = store.read(tmp_path, "load")["requests"]
    table = pd.read_csv(tmp_path / "figures" / "load.csv").set_index("load")
    assert table.requests.to_dict() == asked.groupby("load").size().to_dict()
    assert table.p99_s.to_dict() == pytest.approx(asked.groupby("load").ttft_s.max().to_dict(), rel=1e-5)
    gains = pd.read_csv(tmp_path / "figures" / "load_gain.csv")
    assert set(gains.server) == set(table.index)
    assert len(gains[gains.setting == "apart"]) == 11 * len(table)
    for stem in ("load", "load_gain", "load_table"):
        assert provenance(tmp_path / "figures", stem)["kind"] == "measured"
    assert verdicts(tmp_path / "figures", "load") == {"R2": claims.NOT_TESTED}
