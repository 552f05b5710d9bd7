import json

import numpy as np
import pandas as pd
import pytest

from artifact.data import own_services, traces
from artifact.errors import ArtifactError
from disco_core.errors import InputError

TTFT_S = np.random.default_rng(0).lognormal(-1, 0.5, 120)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(own_services, "FOLDER", tmp_path / "services")
    own_services.FOLDER.mkdir()
    return own_services.FOLDER


def drop(folder, file="mine.csv"):
    table = pd.DataFrame({"arrival_s": 2.0 * np.arange(120), "prompt_tokens": 30, "ttft_s": TTFT_S})
    text = table.to_csv(index=False) if file.endswith("csv") else table.to_json(orient="records", lines=True)
    (folder / file).write_text(text)


def base():
    return traces.paper_services()


@pytest.mark.parametrize("file", ["mine.csv", "mine.jsonl"])
def test_a_record_is_a_service_of_one_host_with_its_prices(folder, file):
    drop(folder, file)
    (folder / "mine.prices.json").write_text(json.dumps({"in": 0.5, "out": 2}))
    assert own_services.names() == ["mine"]
    one = own_services.added(base(), "mine", "build/x")["mine"]
    assert (one.n, list(one.hosts), one.price_in, one.price_out) == (120, ["own"], 0.5e-6, 2e-6)
    assert one.ttft.mean == pytest.approx(TTFT_S.mean(), rel=1e-5)
    assert 0 < one.resample(np.random.default_rng(1)).mean < TTFT_S.max()


def test_a_file_that_is_not_asked_for_changes_nothing(folder):
    drop(folder)
    found = own_services.added(base(), "", "figures")
    assert list(found) == list(base())
    assert own_services.beside(base(), found) == ""
    assert own_services.origin(found) == traces.origin(*base().values())
    table = traces.table("ttft_series")
    assert own_services.with_series(table, found) is table


def test_what_is_added_is_named(folder):
    drop(folder)
    found = own_services.added(base(), " mine , deepseek-chat", "build/x")
    assert list(found)[: len(base())] == list(base())
    assert "mine (120 requests)" in own_services.beside(base(), found)
    assert own_services.origin(found).endswith(own_services.SOURCE)
    assert "mine" not in own_services.priced(found)
    row = own_services.with_series(traces.table("ttft_series"), found).iloc[-1]
    assert (row.service, row.n, row.gap_median_s) == ("mine", 120, 2.0)
    assert row.lag1 == pytest.approx(np.corrcoef(TTFT_S[1:], TTFT_S[:-1])[0, 1], abs=1e-4)


def test_refusals_are_one_line(folder):
    drop(folder)
    taken = traces.services()[0]
    drop(folder, f"{taken}.csv")
    for asked, out, said in [
        ("nothing", "build/x", f"no service 'nothing'; committed: {', '.join(traces.services())}"),
        (taken, "build/x", "has the name of a committed service"),
        ("mine", "figures", "out must not be figures"),
    ]:
        with pytest.raises(InputError) as error:
            own_services.added(base(), asked, out)
        assert said in str(error.value)
        assert "\n" not in str(error.value)
    drop(folder, "mine.jsonl")
    with pytest.raises(ArtifactError, match="one service is one file"):
        own_services.service("mine")


@pytest.mark.parametrize("text", ["", "[1]", '{"in": 1}', '{"in": -1, "out": 1}', '{"in": "a", "out": 1}'])
def test_bad_prices_and_bad_records(folder, text):
    drop(folder)
    (folder / "mine.prices.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"mine\.prices\.json: no prices"):
        own_services.service("mine")
    (folder / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ArtifactError, match=r"bad\.csv: none of the forms"):
        own_services.service("bad")
