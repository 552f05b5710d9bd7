"""The store of measurements: what is stored is not measured again, and what is read is checked."""

import json
import multiprocessing
import time
from pathlib import Path

import pandas as pd
import pytest

from artifact import files
from artifact.errors import ArtifactError
from artifact.measure import code, device, live, overhead, store
from disco_core.errors import InputError
from tests.helpers.measuring import a_run

SETTINGS = {"quick": False, "n": 3}


class Source:
    """Something to measure that counts how often it was: n pieces, numbered from 0."""

    def __init__(self, stop_at=None):
        self.asked, self.stop_at = [], stop_at

    def __call__(self, run):
        run.expect(run.settings.n)
        return {"numbers": pd.DataFrame({"k": [self._piece(run, k) for k in range(run.settings.n)]})}

    def _piece(self, run, k):
        def take():
            if k == self.stop_at:
                raise KeyboardInterrupt
            self.asked.append(k)
            return k * k

        return run.piece_now(f"piece {k}", take)


@pytest.fixture
def take(tmp_path, monkeypatch):
    """`measured` with a store of the test's own."""
    monkeypatch.setattr(store, "STORED", tmp_path / "stored")

    def taken(source, settings=SETTINGS, **more):
        more = {"cores": 0, "out": tmp_path / "measured" / "numbers"} | more
        return store.measured("numbers", settings, source, **more)

    return taken


def test_what_is_stored_is_not_measured_again(take, tmp_path):
    first, again = Source(), Source()
    folder = take(first)
    found = store.read(tmp_path / "measured", "numbers")
    assert found["numbers"].k.tolist() == [0, 1, 4]
    assert found.settings == SETTINGS
    assert found.disturbed == ""
    manifest = (folder / "manifest.json").read_bytes()
    assert take(again) == folder
    assert (first.asked, again.asked) == ([0, 1, 2], [])
    other = Source()
    take(other, SETTINGS | {"n": 2})
    assert other.asked == [0, 1]
    assert take(again) == folder  # going back, as a change of branch does
    assert again.asked == []
    assert (folder / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize("change", ["settings", "code", "model", "server", "machine", "tables"])
def test_whatever_it_depends_on_has_it_measured_again(take, monkeypatch, change):
    take(Source())
    more, settings = {}, SETTINGS
    if change == "settings":
        settings = SETTINGS | {"seed": 1}
    elif change == "code":
        monkeypatch.setattr(store, "code_digest", lambda *_: "other")
    elif change == "model":
        monkeypatch.setattr(store.model, "NAME", "another")
    elif change == "server":
        more = {"server": {"name": "openai:a", "address": "http://127.0.0.1:1"}}
    elif change == "machine":
        monkeypatch.setattr(store, "machine", lambda: {"cpu": "another"})
    else:
        more = {"tables": ["claims"]}
    again = Source()
    take(again, settings, **more)
    assert again.asked == [0, 1, 2]


def test_an_interrupt_keeps_what_was_measured_and_goes_on_from_there(take, tmp_path):
    first, second = Source(stop_at=2), Source()
    with pytest.raises(KeyboardInterrupt):
        take(first)
    assert not (tmp_path / "measured").exists()
    take(second)
    assert (first.asked, second.asked) == ([0, 1], [2])
    assert store.read(tmp_path / "measured", "numbers")["numbers"].k.tolist() == [0, 1, 4]


def test_a_piece_that_was_cut_is_measured_again(take, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        take(Source(stop_at=2))
    (journal,) = (tmp_path / "stored").glob("*/pieces.jsonl")
    journal.write_bytes(journal.read_bytes()[:-5])
    source = Source()
    take(source)
    assert source.asked == [1, 2]


def _hold(path, ready):
    with files.locked(path / "lock", "held"):
        ready.set()
        time.sleep(30)


def test_a_second_run_at_once_is_refused(take, tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "stored", ready))
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(ArtifactError, match="another run is measuring; wait for it, or stop it"):
            take(Source())
    finally:
        other.kill()
        other.join()
    take(Source())  # the lock ends with who held it


def test_a_result_of_which_a_file_is_lost_is_copied_again(take, tmp_path):
    folder = take(Source())
    (folder / "numbers.csv").write_text("k\n7\n")
    with pytest.raises(ArtifactError, match=r"numbers\.csv missing or not as measured"):
        store.read(tmp_path / "measured", "numbers")
    (stored,) = (tmp_path / "stored").glob("numbers-*")
    for lost in ("", "numbers.csv", "manifest.json"):
        if lost:
            (stored / lost).unlink()
        again = Source()
        take(again)
        assert again.asked == []
        assert store.read(tmp_path / "measured", "numbers")["numbers"].k.tolist() == [0, 1, 4]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "No such file"),
        (lambda folder: (folder / "numbers.csv").unlink(), "numbers.csv missing"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "no 'format'"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "does not hold"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\x00"), "does not hold"),
        (lambda folder: _edit(folder, format=2), "version 2 of 'numbers', not 1"),
        (lambda folder: _edit(folder, name="live"), "version 1 of 'live', not 1 of 'numbers'"),
    ],
)
def test_a_folder_that_is_no_such_measurement_is_one_line(take, tmp_path, spoil, told):
    spoil(take(Source()))
    with pytest.raises(ArtifactError) as caught:
        store.read(tmp_path / "measured", "numbers")
    message = str(caught.value)
    assert told in message
    assert "\n" not in message
    assert "make reproduce" in message


def _edit(folder, **changed):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_a_measurement_in_small_is_not_judged(take, tmp_path):
    take(Source(), SETTINGS | {"quick": True})
    assert "quick size" in store.read(tmp_path / "measured", "numbers").disturbed


def test_a_store_that_cannot_be_written_is_one_line(take, tmp_path):
    (tmp_path / "stored").write_text("a file where the folder should be")
    with pytest.raises(ArtifactError, match="cannot write"):
        take(Source())


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, take):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_together", full)
    with pytest.raises((ArtifactError, OSError), match="No space left"):
        take(Source())
    assert not (tmp_path / "measured").exists()


def test_the_hash_is_of_code_not_of_words(tmp_path, monkeypatch):
    before = code.code_digest(live.measure)
    assert before == code.code_digest(live.measure)
    assert code.code_digest(device.measure) != before
    module = live.__file__
    text = Path(module).read_text()
    other = tmp_path / "live.py"
    for changed, same in (
        (text.replace('"""', '"""Other words. ', 1), True),
        (text + "\n# a comment\n", True),
        (text.replace("RATE_TRIALS, RATE_TOKENS = 6, 24", "RATE_TRIALS, RATE_TOKENS = 6, 25"), False),
    ):
        other.write_text(changed)
        monkeypatch.setattr(live, "__file__", str(other))
        assert (code.code_digest(live.measure) == before) is same


@pytest.mark.parametrize(
    "bad", [{"repeats": 0}, {"decode_tokens": -1}, {"lengths": [0]}, {"lengths": []}, {"lengths": [10**6]}]
)
def test_sizes_of_the_device_that_cannot_be_are_named(tmp_path, bad):
    with pytest.raises(InputError, match="context" if bad == {"lengths": [10**6]} else next(iter(bad))):
        device.measure(a_run(tmp_path, "device", **bad))


@pytest.mark.parametrize("bad", [{"sizes": [0]}, {"sizes": []}, {"sizes": [10, 1.5]}, {"repeats": 0}])
def test_sizes_of_the_overhead_that_cannot_be_are_named(tmp_path, bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        overhead.measure(a_run(tmp_path, "overhead", **bad))
