"""Exhibits are held against the committed ones: byte for byte in their environment, else by their numbers."""

import json
import shutil
import sys

import pytest

from artifact.__main__ import main
from artifact.files import FIGURES
from artifact.publish import claims_table, compare

STEMS = ("costs_fit", "costs_energy")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two folders with the same exhibits and verdicts, in the environment they were made in."""
    monkeypatch.setattr(compare, "unlocked", lambda _: [])
    for name in ("made", "committed"):
        (tmp_path / name).mkdir()
        for stem in (*STEMS, "costs.claims"):
            for path in FIGURES.glob(f"{stem}.*"):
                shutil.copy(path, tmp_path / name)
    return tmp_path / "made", tmp_path / "committed"


def test_equal_folders_are_one_line(folders, capsys):
    assert main(["compare", *map(str, folders)]) == 0
    assert capsys.readouterr().out == "2 exhibits, 0 differ\n"


def test_what_differs_is_named(folders, capsys):
    made, committed = folders
    (made / "costs_fit.tex").write_text("another")
    (made / "costs.claims.json").write_text("[]")
    (made / "costs_energy.pdf").unlink()
    for path in committed.glob("costs_fit.*"):
        shutil.copy(path, made / path.name.replace("fit", "new"))
        shutil.copy(path, committed / path.name.replace("fit", "old"))
    assert main(["compare", *map(str, folders)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "costs.claims: .json",
        "costs_energy: costs_energy.pdf only in one of them",
        "costs_fit: .tex",
        "costs_new: new",
        "costs_old: committed, but not made any more",
        "3 exhibits, 5 differ",
    ]


def test_what_differs_is_put_in_its_place(folders):
    made, committed = folders
    (made / "costs_fit.tex").write_text("another")
    (made / "costs_fit.md").unlink()
    before = {path: path.stat().st_mtime_ns for path in committed.glob("costs_energy.*")}
    compare.update(made, committed, compare.compare(made, committed))
    assert (committed / "costs_fit.tex").read_text() == "another"
    assert not (committed / "costs_fit.md").exists()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert compare.compare(made, committed).same


@pytest.mark.parametrize(
    ("old", "new", "alike"),
    [
        *(("0.583", "0.5830001", True), ("0.583", "0.584", False), ("0.583", "nan", False), ("4", "4.0", True)),
        *(("0.123456", "0.123457", True), ("0.123456", "0.123476", False), ("1e-17", "-3e-12", True)),
        *(("1.23457e+06", "1.23458e+06", True), ("287", "288", False), ("0", "0.001", False)),
    ],
)
def test_in_another_environment_numbers_decide(folders, monkeypatch, capsys, old, new, alike):
    made, committed = folders
    monkeypatch.setattr(compare, "unlocked", lambda _: ["numpy 1.0"])
    (made / "costs_fit.tex").write_text("another")
    (made / "costs_fit.json").write_text("{}")
    (committed / "costs_fit.csv").write_text(f"device,r2\nphone 5,{old}\n")
    (made / "costs_fit.csv").write_text(f"device,r2\nphone 5,{new}\n")
    assert main(["compare", *map(str, folders)]) == (0 if alike else 1)
    told = capsys.readouterr().out
    assert "Not the environment of figures/ (numpy 1.0): numbers were compared, pictures may not agree." in told
    assert ("costs_fit: .csv" in told) != alike


def test_in_another_environment_verdicts_are_held_against_each_other(folders, monkeypatch):
    made, committed = folders
    monkeypatch.setattr(compare, "unlocked", lambda _: ["numpy 1.0"])
    path = made / "costs.claims.json"
    found = json.loads(path.read_text())
    found[0]["ours"]["median"] *= 1 + 1e-8
    found[0]["ours"]["text"] = "median 0.5833 of 8 (0.5573 to 0.62), p = 0.00024"
    path.write_text(json.dumps(found))
    other = json.loads((committed / path.name).read_text())
    other[0]["ours"]["text"] = "median 0.5832 of 8 (0.5573 to 0.6199), p = 0.00025"
    (committed / path.name).write_text(json.dumps(other))
    assert compare.compare(made, committed).same
    for old, new in (("of 8", "of 9"), ("0.5832", "0.5835")):
        other[0]["ours"]["text"] = found[0]["ours"]["text"].replace("0.5833", "0.5832").replace(old, new)
        (committed / path.name).write_text(json.dumps(other))
        assert not compare.compare(made, committed).same
    found[0]["verdict"] = "PASS" if found[0]["verdict"] != "PASS" else "DIFFERS"
    path.write_text(json.dumps(found))
    assert compare.compare(made, committed).differ == {"costs.claims": ".json"}


def test_a_folder_without_exhibits_is_reported(tmp_path, folders, capsys):
    assert main(["compare", str(tmp_path / "none"), str(folders[1])]) == 1
    assert capsys.readouterr().err == f"no exhibit in {tmp_path / 'none'}; run `make figures` first\n"
    assert set(compare.compare(folders[0], tmp_path).differ.values()) == {"new"}


def test_the_environment_is_that_of_the_exhibits(tmp_path):
    paths = [tmp_path / "a.json", tmp_path / "b.json", tmp_path / "none.json"]
    for path in paths[:2]:
        path.write_text(json.dumps({"packages": {"scipy": compare.metadata.version("scipy")}}))
    assert compare.unlocked(paths) == []
    paths[1].write_text(json.dumps({"packages": {"scipy": "1.0", "none-such": "1"}}))
    assert compare.unlocked(paths) == [f"scipy {compare.metadata.version('scipy')}", "none-such is not installed"]
    if sys.version_info < (3, 12):  # for which requirements.lock has other versions than for later ones
        assert compare.unlocked(FIGURES.glob("*_fit.json")) == []


def test_the_pages_made_of_the_exhibits_are_compared_too(folders, monkeypatch, capsys):
    _, committed = folders
    readme = committed.parent / "README.md"
    readme.write_text("<!-- claims: x -->\nold\n<!-- end of claims -->\n")
    monkeypatch.setattr("artifact.__main__.FIGURES", committed)
    monkeypatch.setattr(claims_table, "README", readme)
    assert main(["compare", *map(str, folders)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "2 exhibits, 0 differ",
        *(
            f"{path} differs from what {committed}/ gives; run `make figures`"
            for path in (committed / "README.md", committed / "exhibits.bib", readme)
        ),
    ]
    assert main(["compare", *map(str, folders), "--update"]) == 0
    assert "D6a" in readme.read_text()
    assert main(["compare", *map(str, folders)]) == 0
    readme.write_text(readme.read_text().replace("D6a", "D6b"))
    assert main(["compare", *map(str, folders)]) == 1
