"""The reference is made of five complete, full-size and undisturbed measurements, or stays as it was."""

import hashlib
import json

import pytest

from artifact.__main__ import main
from artifact.errors import ArtifactError
from artifact.publish import reference

TABLE = "x\n1\n"


@pytest.fixture
def measured(tmp_path):
    """A folder of five measurements, as small as they can be."""
    return folder_of(reference.NAMES, tmp_path)


def folder_of(names, tmp_path):
    for name in names:
        folder = tmp_path / "measured" / name
        folder.mkdir(parents=True)
        (folder / "table.csv").write_text(TABLE)
        files = {"table.csv": hashlib.sha256(TABLE.encode()).hexdigest()}
        about = {"format": 1, "name": name, "settings": {"quick": False}, "disturbed": "", "files": files}
        (folder / "manifest.json").write_text(json.dumps(about))
    return tmp_path / "measured"


def contents(folder):
    return {path.relative_to(folder): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_five_are_copied_and_what_was_there_goes(measured, tmp_path):
    (tmp_path / "out" / "live").mkdir(parents=True)
    (tmp_path / "out" / "live" / "old.csv").write_text("gone")
    assert reference.take(measured, tmp_path / "out") == [tmp_path / "out" / name for name in reference.NAMES]
    assert contents(tmp_path / "out") == contents(measured)


def test_an_optional_one_is_copied_where_it_was_measured(tmp_path):
    measured = folder_of([*reference.NAMES, "campaign"], tmp_path)
    assert reference.take(measured, tmp_path / "out")[-1] == tmp_path / "out" / "campaign"
    assert contents(tmp_path / "out") == contents(measured)


def test_one_that_was_not_evaluated_leaves_the_one_that_was(tmp_path):
    measured = folder_of([*reference.NAMES, "elastic"], tmp_path)
    path = measured / "elastic" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": {"evaluate": False}}))
    assert reference.take(measured, tmp_path / "out") == [tmp_path / "out" / name for name in reference.NAMES]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"settings": {"quick": True}}, "live is no reference: measured in its quick size"),
        ({"disturbed": "the machine was busy"}, "live is no reference: the machine was busy"),
        ({"format": 0}, "does not hold the measurement live"),
        ({"files": {"none.csv": "0"}}, r"none\.csv missing or not as measured"),
    ],
)
def test_another_is_refused_and_nothing_is_copied(measured, tmp_path, change, told):
    path = measured / "live" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=told):
        reference.take(measured, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_that_is_missing_or_too_large_is_one_line(measured, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reference, "MOST_BYTES", 100)
    with pytest.raises(ArtifactError, match="a reference at most"):
        reference.take(measured, tmp_path / "out")
    assert main(["reference", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
