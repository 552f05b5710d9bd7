"""The manifest of levels: what it lists is as it was made, or one line says which file is not."""

import json
import re

import pytest

import disco_core as dc
from disco_core.systems.elastic import ElasticEndpoint, Level, load_levels
from disco_core.systems.elastic.levels import MANIFEST
from tests.helpers.levels import listed, write_manifest

SHARES = {"80.gguf": 0.8, "100.gguf": 1.0, "27.gguf": 0.269}


@pytest.fixture
def parent(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF, the whole model")
    return path


@pytest.fixture
def folder(tmp_path, parent):
    """Levels of a model, one with an adapter."""
    found = tmp_path / "levels"
    found.mkdir()
    for name in (*SHARES, "80-rank8.gguf"):
        (found / name).write_bytes(f"GGUF {name}".encode())
    entries = [listed(share, found / name) for name, share in SHARES.items()]
    entries[0] = listed(0.8, found / "80.gguf", found / "80-rank8.gguf")
    write_manifest(found, listed(1.0, parent)["sha256"], entries)
    return found


def changed(folder, change):
    """Change the manifest."""
    manifest = json.loads((folder / MANIFEST).read_text())
    result = change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest if result is None else result))


def refused(folder, parent=None):
    """The one line that refuses it."""
    with pytest.raises(dc.InputError) as caught:
        load_levels(folder, parent)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_levels_come_by_their_percent_the_largest_first(folder, parent):
    for levels in (load_levels(folder), load_levels(str(folder), str(parent))):
        assert list(levels) == [100, 80, 27]
        assert [level.percent for level in levels.values()] == [100, 80, 27]
        assert levels[27] == Level(0.269, folder / "27.gguf")
        assert levels[80] == Level(0.8, folder / "80.gguf", folder / "80-rank8.gguf")


@pytest.mark.parametrize("name", ["27.gguf", "80-rank8.gguf"])
def test_a_file_that_changed_or_is_missing_is_named(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes() + b"!")
    assert refused(folder) == f"{path} is not the level that was made: its sha256 differs; make the levels again"
    path.unlink()
    assert refused(folder) == f"{path} cannot be read: No such file or directory; make the levels again"
    path.mkdir()
    assert refused(folder) == f"{path} cannot be read: Is a directory; make the levels again"


def test_levels_of_another_model_are_refused(folder, parent, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF, another model")
    what = f"the levels in {folder} were cut from another model than other.gguf; make the levels again"
    assert refused(folder, other) == what
    (folder / "27.gguf").unlink()
    assert refused(folder, other) == what
    assert refused(folder, tmp_path / "none.gguf").startswith(f"{tmp_path / 'none.gguf'} cannot be read")
    assert refused(folder, 5) == "parent must be a path, got 5"


def test_a_folder_without_a_manifest_is_named(tmp_path):
    for missing in (tmp_path, tmp_path / "none"):
        what = f"{missing / MANIFEST} cannot be read: No such file or directory; make the levels again"
        assert refused(missing) == what
    for bad in (None, 5, b"levels"):
        assert refused(bad) == f"folder must be a path, got {bad!r}"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"5",
        b"null",
        b'"levels"',
        b"{}",
        b'{"parent": {"sha256": "a"}}',
        b"[" * 100_000,
    ],
)
def test_a_file_that_is_no_manifest_is_named(folder, raw):
    (folder / MANIFEST).write_bytes(raw)
    assert re.search(r"levels\.json is no manifest of levels \(.*\); make the levels again$", refused(folder))


@pytest.mark.parametrize(
    "level",
    [
        None,
        5,
        "27.gguf",
        {},
        {"share": 0.5},
        {"share": None},
        {"share": "half", "file": "27.gguf"},
        {"share": 0, "file": "27.gguf"},
        {"share": 1.01, "file": "27.gguf"},
        {"share": float("nan"), "file": "27.gguf"},
        {"share": 10**400, "file": "27.gguf"},
        {"share": True, "file": "27.gguf"},
        {"share": 0.001, "file": "27.gguf"},
        {"share": 0.5, "file": "../27.gguf"},
        {"share": 0.5, "file": "/27.gguf"},
        {"share": 0.5, "file": "27\n.gguf"},
    ],
)
def test_a_level_that_is_none_is_named(folder, level):
    changed(folder, lambda manifest: manifest["levels"].append(level))
    assert re.search(r"levels\.json is no manifest of levels \(\w+: .*\); make the levels again$", refused(folder))


@pytest.mark.parametrize("adapter", [5, "80-rank8.gguf", [], {}, {"file": "80-rank8.gguf"}])
def test_an_adapter_that_is_none_is_named(folder, adapter):
    changed(folder, lambda manifest: manifest["levels"][1].update(adapter=adapter))
    assert re.search(r"levels\.json is no manifest of levels \(\w+: .*\); make the levels again$", refused(folder))


def test_two_levels_of_a_percent_or_none_at_all_are_refused(folder):
    def twice(manifest):
        manifest["levels"].append(manifest["levels"][2] | {"share": 0.272})

    changed(folder, twice)
    what = f"{folder / MANIFEST} lists two levels of the same percent; make the levels again"
    assert refused(folder) == what
    changed(folder, lambda manifest: manifest.update(levels=[]))
    assert refused(folder) == f"{folder / MANIFEST} lists no level; make the levels again"


# --- arguments of the endpoint


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"levels": {}}, "levels must be those of load_levels, got {}"),
        ({"levels": None}, "levels must be those of load_levels, got None"),
        ({"levels": "build/levels"}, "levels must be those of load_levels, got 'build/levels'"),
        ({"levels": {80: "80.gguf"}}, "levels must be those of load_levels"),
        ({"levels": {100: Level(1.0, "none.gguf")}}, "model_path must be a GGUF file, got 'none.gguf': No such"),
        ({"levels": {80: Level(1.0, "none.gguf")}}, "levels must be by their percent, got 80 for 100"),
        ({"choose": 80}, "choose must be a function of a prefix, got 80"),
        ({"resident": 1}, "resident must be a bool, got 1"),
        ({"prefix_cache": True}, "prefix_cache must be False, since the levels share no cache"),
    ],
)
def test_a_bad_argument_of_the_endpoint_is_named(folder, options, word):
    with pytest.raises(dc.InputError, match=f"^small: {re.escape(word)}"):
        ElasticEndpoint(**{"levels": load_levels(folder), "name": "small"} | options)
    with pytest.raises(dc.InputError, match=r"^name must be a str"):
        ElasticEndpoint(load_levels(folder), name=5)


def test_a_level_file_that_is_no_model_is_named(folder):
    levels = load_levels(folder)
    levels[80].path.write_bytes(b"hello there")
    with pytest.raises(
        dc.InputError, match=r"^elastic: model_path must be a GGUF file, got .*80\.gguf.* begins with"
    ):
        ElasticEndpoint(levels)
    levels[80].adapter.unlink()
    levels[80].path.write_bytes(b"GGUF")
    with pytest.raises(dc.InputError, match=r"^elastic: the adapter of level 80 is not there: .*80-rank8\.gguf$"):
        ElasticEndpoint(levels, resident=False)
    (folder / "80-rank8.gguf").write_bytes(b"GGUF")
    with pytest.raises(dc.InputError, match=r"^elastic: model_path .*100\.gguf' cannot be loaded"):
        ElasticEndpoint(levels)
