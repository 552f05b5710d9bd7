"""Every notebook, run by Papermill in its quick size from the reference measurements, with values of what it made."""

import json
import os

import nbformat
import numpy as np
import pandas as pd
import pytest

from artifact.data.model import smollm2_path
from artifact.files import DATA, ROOT
from artifact.measure import store
from artifact.publish import claims, reference
from artifact.publish.parameters import common
from artifact.publish.run import run
from disco_core.endpoints.local_server import LocalServer

NOTEBOOKS = [path for path in sorted((ROOT / "notebooks").glob("*.ipynb")) if path.stem != "index"]  # which asks none
MEASURED = DATA / "measured"
pytestmark = pytest.mark.slow
measured = pytest.mark.skipif(not MEASURED.exists(), reason="no reference measurements in data/measured")


def quick(stem, out, **given):
    """Run a notebook in its quick size, its exhibits into `out`; the executed copy."""
    return run(stem, out, **common(stem, {"quick": True, "out": str(out)}), **given)


def verdicts(folder):
    found = [one for path in folder.glob("*.claims.json") for one in json.loads(path.read_text())]
    return {one["id"]: one["verdict"] for one in found}


def simulated(folder):
    """Bytes of every exhibit that is to be the same at every run."""
    kinds = {path.stem: json.loads(path.read_text())["kind"] for path in folder.glob("*[!s].json")}
    stems = [stem for stem, kind in kinds.items() if kind != "measured"]
    return {path.name: path.read_bytes() for stem in stems for path in folder.glob(f"{stem}.*")}


@pytest.fixture(scope="session")
def endpoints(tmp_path_factory):
    out = tmp_path_factory.mktemp("endpoints")
    quick("endpoints", out)
    return out


@measured
def test_endpoints_fits_the_device_that_ran(endpoints):
    shown = pd.read_csv(endpoints / "endpoints_correlation.csv")
    device, servers = shown.iloc[0], shown.iloc[1:]
    assert device.pearson > 0.95
    assert servers.pearson.abs().max() < 0.3
    assert len(servers) == 6
    assert json.loads((endpoints / "endpoints_ttft.json").read_text())["kind"] == "measured"
    assert verdicts(endpoints) == {"D9": claims.PASS}


@pytest.fixture(scope="session")
def traces(tmp_path_factory):
    out = tmp_path_factory.mktemp("traces")
    quick("traces", out)
    return out


def test_traces_shows_the_published_quantiles(traces):
    quantiles = pd.read_csv(traces / "traces_quantiles.csv").set_index("service")
    published = pd.read_csv(ROOT / "data" / "ttft_series.csv").set_index("service")
    # the tables' P50 and P99 beside the series' own: two paths from the same public files
    for column, own in {"P50": "p50_s", "P99": "p99_s"}.items():
        assert np.allclose(quantiles[column][published.index], published[own], rtol=1e-3)
    limits = pd.read_csv(traces / "traces_constrained.csv")
    assert (limits.iloc[:, 3] < limits.iloc[:, 4]).all()


@pytest.fixture(scope="session")
def dispatch(tmp_path_factory):
    out = tmp_path_factory.mktemp("dispatch")
    quick("dispatch", out)
    return out


@measured
def test_dispatch_beats_a_coin_within_the_budget(dispatch):
    tail = pd.read_csv(dispatch / "dispatch_tail.csv")
    assert len(tail) == 4 * 3 * 2
    assert (tail.stoch_cut > 0).all()
    assert set(verdicts(dispatch)) == {"D1", "D2", "D4", "D8"}
    here = pd.read_csv(dispatch / "dispatch_this_machine.csv")
    assert set(here.device) == {"this machine"}
    for path in dispatch.glob("dispatch*.csv"):
        if path.stem != "dispatch_this_machine":
            assert "this machine" not in path.read_text()


@measured
def test_exhibits_are_the_same_bytes_again(tmp_path, dispatch):
    quick("dispatch", tmp_path)
    first, second = ({path.name: path.read_bytes() for path in out.glob("*_*")} for out in (dispatch, tmp_path))
    assert len(first) > 40
    assert first == second


@pytest.mark.mirror
@pytest.mark.skipif("DISCO_TRACE_MIRROR" not in os.environ, reason="DISCO_TRACE_MIRROR names no mirror of the traces")
def test_the_real_series_say_what_the_tables_say(tmp_path, traces):
    quick("traces", tmp_path, source="public")
    public, tables = (pd.read_csv(f / "traces_quantiles.csv", index_col=0) for f in (tmp_path, traces))
    assert np.allclose(public[["mean", "P50", "P99"]], tables[["mean", "P50", "P99"]], rtol=0.02)
    assert "public series" in (tmp_path / "traces_quantiles.json").read_text()


@measured
def test_live_runs_every_policy_on_both_settings(tmp_path):
    quick("live", tmp_path)
    shown = pd.read_csv(tmp_path / "live_ttft.csv")
    assert len(shown) == 2 * 6
    assert (shown[["mean_s_low", "p50_s", "p90_s"]] > 0).all(axis=None)
    asked = store.read(MEASURED, "live")["requests"]
    assert asked.failures.isna().all()
    # what was held is what the first token took at least, where the server alone answered
    alone = asked[asked.policy == "server only"]
    assert (alone.ttft_s >= alone.held_s).all()
    assert (alone[alone.setting != "raw"].held_s > 0).all()
    # one answer from two ends is as long as from one, and every token was charged to the end that made it
    assert (asked.tokens <= asked.server_decode + asked.device_decode).all()
    found = verdicts(tmp_path)
    assert set(found) == {"L1", "L2", "L3", "L4"}
    assert found["L4"] == claims.NOT_TESTED


@measured
def test_migration_saves_and_the_seam_is_exact(tmp_path):
    quick("migration", tmp_path)
    cells = pd.read_csv(tmp_path / "migration_cost.csv")
    assert len(cells) == 4 * 3 * 2 * 3  # services, phones, constraints, budgets in small
    assert cells.saving.between(0, 100).all()
    assert verdicts(tmp_path).keys() == {"D3", "D5", "D5a", "D6", "D6a", "D11", "L5"}
    assert pd.read_csv(tmp_path / "migration_seams.csv").exact.all()
    assert "this machine" not in (tmp_path / "migration_cost.csv").read_text()


@measured
def test_pd_device_answers_as_soon_as_the_cloud_and_loses_no_token(tmp_path):
    quick("pd_device", tmp_path)
    found = store.read(MEASURED, "pd_device")
    asked, tokens = found["requests"], found["tokens"]
    assert asked.failures.isna().all()
    for _, answer in tokens.groupby(["policy", "request"]):
        assert answer.token.tolist() == list(range(len(answer)))
        assert answer.released_s.is_monotonic_increasing
        assert (answer.generated_s <= answer.released_s + 1e-6).all()
    both = asked[asked.policy != "device only"]
    assert (both.ttft_s <= both.held_s + 1.0).all()  # with the cloud's, or sooner
    assert verdicts(tmp_path).keys() == {"P1", "P2", "P3"}
    cells = pd.read_csv(tmp_path / "pd_device_lengths.csv")
    assert len(cells) == 4 * 4 * 8 * 4
    assert (cells.cloud_s >= 0).all()
    assert "this machine" not in (tmp_path / "pd_device_lengths.json").read_text()


@pytest.mark.parametrize("name", reference.NAMES)
def test_what_measures_leaves_a_folder_that_is_read_and_judges_nothing(tmp_path, name):
    run(f"measure_{name}", tmp_path, quick=True, out=str(tmp_path / name))
    found = store.read(tmp_path, name)
    assert found.tables
    optional = {"perplexity", "verdicts"}  # with a second model, and with judges
    assert all(len(table) for table_name, table in found.tables.items() if table_name not in optional)
    assert found.disturbed == "measured in its quick size, which is too small to judge"


@measured
def test_the_reference_is_whole_small_and_of_the_full_size():
    for name in reference.NAMES:
        assert store.read(MEASURED, name).disturbed == ""
    size = sum(path.stat().st_size for path in MEASURED.rglob("*") if path.is_file())
    assert size < reference.MOST_BYTES


def test_a_conversation_without_anybody_there(tmp_path):
    done = nbformat.read(quick("chat", tmp_path, max_tokens=8), as_version=4)
    said = "".join(
        output.get("text", "") for cell in done.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "first token after" in said
    assert "8 tokens" in said or "tokens by the device" in said


def test_live_asks_a_server_with_a_key_and_does_not_tell_it(tmp_path, monkeypatch):
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_keep_their_form(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    text = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any(cell.outputs or cell.execution_count for cell in code)
    computing = [cell.source for cell in code if "start this notebook in the project's root" not in cell.source]
    assert 5 <= len(computing) <= 12
    for source in computing:  # apart from imports
        assert len([line for line in source.splitlines() if line and not line.startswith(("import", "from"))]) <= 25
    headings = [line[3:] for source in text for line in source.splitlines() if line.startswith("## ")]
    assert headings == ["Question", "Design", "Expect", "Compute", "Check"]
    parameters = next(cell.source for cell in code if "parameters" in cell.metadata.get("tags", []))
    assert all("  # " in line and ": " in line.split("  # ")[1] for line in parameters.splitlines())
