"""What levels there can be is checked before anything is computed."""

from pathlib import Path

import pytest

from artifact.data import model as device_model
from artifact.elastic import cut, make
from artifact.elastic.cut import Shape
from artifact.errors import ArtifactError


@pytest.mark.parametrize(
    ("shares", "options", "told"),
    [
        ([], {}, r"shares must lie between 0 and 1, and be less than 99.5 %, got \[\]"),
        ([0.8, 1.0], {}, "shares must lie between 0 and 1"),
        ([0.996], {}, "be less than 99.5 %"),
        ([float("nan")], {}, "shares must lie between 0 and 1"),
        ([-0.5], {}, "shares must lie between 0 and 1"),
        ([0.8, 0.8], {}, "two levels have the same percent: 80, 80"),
        ([0.801, 0.799], {}, "two levels have the same percent: 80, 80"),
        ([0.8, 0.1], {}, r"no level has 10.0% of the block weights; the smallest has 2\d"),
        ([0.1], {"anchors": [0]}, r"no level has 10.0% of the block weights; the smallest has 1\d"),
        ([0.8], {"rank": 0}, "the rank of an adapter must be from 1 to 576, got 0"),
        ([0.8], {"rank": 577}, "the rank of an adapter must be from 1 to 576, got 577"),
    ],
)
def test_levels_that_cannot_be_are_one_line_at_once(tmp_path, monkeypatch, shares, options, told):
    monkeypatch.setattr(make, "Workshop", None)  # what would compute
    with pytest.raises(ArtifactError, match=told) as caught:
        make.make(tmp_path, shares, **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_files_that_were_read_can_be_unmapped():
    path = device_model.smollm2_path()

    def mapped():
        return str(path.resolve()) in Path("/proc/self/maps").read_text()

    cut.parent(path)
    assert mapped()
    cut.close_files()
    assert not mapped()


def test_a_share_is_near_the_one_that_is_asked_for():
    about = cut.parent(device_model.smollm2_path())
    for share in (0.9, 0.5, 0.3):
        near = make._near(about, share, range(6))
        assert near
        assert all(abs(about.share(shape, range(6)) - share) < 0.02 for shape in near)
    assert Shape(3, 1024) in make._near(about, 0.8, range(6))
