"""Times of planning: every work is timed at every size, and the claims are judged from them."""

import json

import numpy as np
import pytest

from artifact.measure import overhead, store
from artifact.publish import claims
from artifact.publish.run import run
from tests.helpers.measuring import a_run


def test_every_work_is_timed_by_turns_and_the_large_ones_less_often(tmp_path, monkeypatch):
    monkeypatch.setattr(overhead, "PAPER", 300)
    found = overhead.measure(a_run(tmp_path, "overhead", sizes=[300, 3000], repeats=6))["values"]
    assert list(found.columns) == ["work", "by", "n", "repeat", "unit", "value"]
    assert (found.value > 0).all()
    times, peaks = found[found.unit == "s"], found[found.unit == "bytes"]
    assert len(peaks) == 2 * 9
    assert times.groupby(["work", "by", "n"]).size().to_dict() == {
        (work.name, work.by, n): 6 if n == 300 else 2
        for n in (300, 3000)
        for work in overhead.works(n, np.random.default_rng(0))
    }
    # what is kept of n numbers needs at least their 8 bytes
    kept = peaks[peaks.work == "build F"]
    assert (kept.value >= 8 * kept.n).all()


@pytest.mark.slow
def test_the_notebook_judges_planning(tmp_path):
    run("overhead", tmp_path, out=str(tmp_path))
    found = {one["id"]: one for one in json.loads((tmp_path / "overhead.claims.json").read_text())}
    assert {id: one["verdict"] for id, one in found.items()} == {"D7": claims.PASS, "D7a": claims.PASS}
    rows = store.read("data/measured", "overhead")["values"]
    at = rows[(rows.unit == "s") & (rows.by == overhead.OURS) & (rows.n == overhead.PAPER)]
    ours = 1e3 * at[at.work == "plan DiSCo-S"].value.median()
    assert found["D7"]["ours"]["median"] == pytest.approx(ours, rel=1e-5)
    together = at.pivot(index="repeat", columns="work", values="value")
    together = 1e3 * (together["build F"] + together["plan DiSCo-D"]).median()
    assert found["D7a"]["ours"]["median"] == pytest.approx(together, rel=1e-5)
    for stem in ("overhead", "overhead_table", "overhead_memory"):
        assert json.loads((tmp_path / f"{stem}.json").read_text())["kind"] == "measured"
