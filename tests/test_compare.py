"""Exhibits are held against the committed ones: byte for byte in the locked environment, else by their numbers."""

import json
import shutil

import pytest

from artifact.__main__ import main
from artifact.errors import ArtifactError
from artifact.files import FIGURES
from artifact.publish import compare

STEMS = ("costs_fit", "costs_energy")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two folders with the same exhibits and verdicts, in the locked environment."""
    monkeypatch.setattr(compare, "unlocked", list)
    for name in ("made", "committed"):
        (tmp_path / name).mkdir()
        for stem in (*STEMS, "costs.claims"):
            for path in FIGURES.glob(f"{stem}.*"):
                shutil.copy(path, tmp_path / name)
    return tmp_path / "made", tmp_path / "committed"


def test_what_is_the_same_is_said_in_a_line(folders, capsys):
    assert main(["compare", *map(str, folders)]) == 0
    assert capsys.readouterr().out == "2 exhibits, 0 differ\n"


def test_what_differs_is_named(folders, capsys):
    made, committed = folders
    (made / "costs_fit.svg").write_text("another")
    (made / "costs.claims.json").write_text("[]")
    (made / "costs_energy.pdf").unlink()
    for path in committed.glob("costs_fit.*"):
        shutil.copy(path, made / path.name.replace("fit", "new"))
        shutil.copy(path, committed / path.name.replace("fit", "old"))
    assert main(["compare", *map(str, folders)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "costs.claims: .json",
        "costs_energy: costs_energy.pdf only in one of them",
        "costs_fit: .svg",
        "costs_new: new",
        "costs_old: committed, but not made any more",
        "3 exhibits, 5 differ",
    ]


def test_what_differs_is_put_in_its_place(folders):
    made, committed = folders
    (made / "costs_fit.svg").write_text("another")
    (made / "costs_fit.md").unlink()
    before = {path: path.stat().st_mtime_ns for path in committed.glob("costs_energy.*")}
    compare.update(made, committed, compare.compare(made, committed))
    assert (committed / "costs_fit.svg").read_text() == "another"
    assert not (committed / "costs_fit.md").exists()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert compare.compare(made, committed).same


@pytest.mark.parametrize(
    ("old", "new", "alike"),
    [("0.583", "0.5830001", True), ("0.583", "0.584", False), ("0.583", "nan", False), ("4", "4.0", True)],
)
def test_in_another_environment_numbers_decide(folders, monkeypatch, capsys, old, new, alike):
    made, committed = folders
    monkeypatch.setattr(compare, "unlocked", lambda: ["numpy 1.0"])
    (made / "costs_fit.svg").write_text("another")
    (made / "costs_fit.json").write_text("{}")
    (committed / "costs_fit.csv").write_text(f"device,r2\nphone 5,{old}\n")
    (made / "costs_fit.csv").write_text(f"device,r2\nphone 5,{new}\n")
    assert main(["compare", *map(str, folders)]) == (0 if alike else 1)
    told = capsys.readouterr().out
    assert "Not the locked environment (numpy 1.0): numbers were compared, pictures may not agree." in told
    assert ("costs_fit: .csv" in told) != alike


def test_in_another_environment_verdicts_are_held_against_each_other(folders, monkeypatch):
    made, committed = folders
    monkeypatch.setattr(compare, "unlocked", lambda: ["numpy 1.0"])
    path = made / "costs.claims.json"
    found = json.loads(path.read_text())
    found[0]["ours"]["median"] *= 1 + 1e-8
    path.write_text(json.dumps(found))
    assert compare.compare(made, committed).same
    found[0]["verdict"] = "PASS" if found[0]["verdict"] != "PASS" else "DIFFERS"
    path.write_text(json.dumps(found))
    assert compare.compare(made, committed).differ == {"costs.claims": ".json"}


def test_folders_without_exhibits_are_told(tmp_path, folders, capsys):
    assert main(["compare", str(tmp_path / "none"), str(folders[1])]) == 1
    assert capsys.readouterr().err == f"no exhibit in {tmp_path / 'none'}; run `make figures` first\n"
    with pytest.raises(ArtifactError, match="no exhibit in"):
        compare.compare(folders[0], tmp_path)


def test_the_environment_of_the_lock_is_known(tmp_path, monkeypatch):
    lock = tmp_path / "requirements.lock"
    monkeypatch.setattr(compare, "LOCK", lock)
    lock.write_text("".join(f"{name}=={compare.metadata.version(name)}\n" for name in compare.PACKAGES))
    assert compare.unlocked() == []
    lock.write_text(lock.read_text().replace("numpy==", "numpy==9"))
    assert compare.unlocked() == [f"numpy {compare.metadata.version('numpy')}"]
    lock.unlink()
    with pytest.raises(ArtifactError, match=r"cannot read requirements\.lock"):
        compare.unlocked()
