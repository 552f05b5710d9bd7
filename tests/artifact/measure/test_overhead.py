"""Times of planning: every work is timed at every size, and the claims are judged from them."""

import numpy as np

from artifact.measure import overhead
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
