"""Exhibits are of the latest rendering of their notebook, and what does not match it is made again."""

import base64

import nbformat
import pytest

from artifact.publish import run
from disco_core.errors import InputError
from tests.helpers import scripts


def test_a_notebook_shows_a_figure_as_it_was_saved_and_once(notebook, tmp_path):
    executed = run.run(notebook(scripts.text("cell_figure.py")), tmp_path / "runs", out=str(tmp_path / "figures"))
    shown = [out for cell in nbformat.read(executed, as_version=4).cells for out in cell.outputs]
    (picture,) = (base64.b64decode(one.data["image/png"]) for one in shown if "image/png" in one.data)
    assert picture == (tmp_path / "figures" / "try_one.png").read_bytes()


@pytest.fixture
def rendered(notebook, tmp_path, monkeypatch):
    """Two notebooks' exhibits, one of them rendered, and beside them files of no notebook."""
    monkeypatch.setattr(run, "BUILD", tmp_path)
    out = tmp_path / "figures"
    out.mkdir()
    for name in ("try_before.csv", "try.claims.json", "another_x.json", "README.md"):
        (out / name).write_text("old")
    return run.render(notebook(scripts.text("cell_exhibits.py")), tmp_path / "executed", out=str(out)), out


@pytest.mark.slow
def test_nothing_is_left_of_an_earlier_rendering(rendered, tmp_path):
    copy, out = rendered
    ours = ["try.claims.json", "try_a.csv", "try_a.json"]
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "another_x.json", *ours]
    run.sweep(out, [copy])
    assert sorted(path.name for path in out.iterdir()) == ["README.md", *ours]
    assert copy.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm",
    [
        lambda out: (out / "try_a.csv").write_text("by hand"),
        lambda out: (out / "try_a.csv").unlink(),
        lambda out: (out / "try_left.csv").touch(),
        lambda out: out.rename(out.with_name("elsewhere")),
    ],
)
def test_exhibits_that_are_not_as_they_were_made_are_made_again(rendered, harm):
    copy, out = rendered
    harm(out)
    run.sweep(out, [copy])
    assert not copy.exists()


@pytest.mark.slow
def test_a_notebook_without_exhibits_is_run_once(notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "BUILD", tmp_path)
    copy = run.render(notebook(declared="seed = 0"), tmp_path / "executed")
    run.sweep(tmp_path / "figures", [copy])
    assert copy.exists()


def test_exhibits_are_taken_away_below_build_only(notebook, tmp_path):
    (tmp_path / "try_a.csv").write_text("old")
    with pytest.raises(InputError, match="below build/ only"):
        run.render(notebook(), tmp_path, out=str(tmp_path))
    with pytest.raises(InputError, match="below build/ only"):
        run.sweep("figures", ["build/notebooks/none.ipynb"])
    assert (tmp_path / "try_a.csv").exists()
