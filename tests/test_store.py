"""The store of measurements: what is stored is not taken again, what is read is checked, a busy machine is told."""

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from artifact import files
from artifact.errors import ArtifactError
from artifact.measure import busy, code, device, live, overhead, pieces, store
from disco_core.errors import InputError, StalledError
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


def test_two_runs_are_kept_apart(take, tmp_path):
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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_cannot_be_written_is_one_line(take, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match="cannot write"):
        take(Source())


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, take):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_together", full)
    with pytest.raises((ArtifactError, OSError), match="No space left"):
        take(Source())
    assert not (tmp_path / "measured").exists()


# a busy machine


class Signs(busy.Monitor):
    """A monitor that sees what it is told to, one word a piece and try."""

    def __init__(self, *words):
        super().__init__(2)
        self.words = list(words)

    def _judge(self, found):
        return self.words.pop(0) if self.words else ""


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Nothing waits before another try."""
    monkeypatch.setattr(pieces, "WINDOW_S", 0.0)


def disturbed_run(tmp_path, *words, cores=2):
    run = a_run(tmp_path, "device", cores=cores)
    run.monitor = Signs(*words)
    return run


def test_a_disturbed_piece_is_measured_again_at_most_twice(tmp_path, capsys):
    run, taken = disturbed_run(tmp_path, "", "busy", "", "busy", "busy", "busy"), []
    for k in range(3):
        run.piece_now(str(k), lambda k=k: taken.append(k))
    assert taken == [0, 1, 1, 2, 2, 2]
    found = run.busy()
    assert (found["pieces"], found["repeated"], found["disturbed"], found["marked"]) == (3, 2, 1, ["2"])
    told = capsys.readouterr().err
    assert "device, 1: busy; measured again" in told
    assert "device, 2: busy; marked" in told
    again, more = disturbed_run(tmp_path), []  # the next run takes those that were marked, and only those
    for k in range(3):
        again.piece_now(str(k), lambda k=k: more.append(k))
    assert more == [2]
    assert again.disturbed() == ""


FEW = [(9, 0, True), (9, 1, False), (10, 1, True), (10, 2, False), (100, 5, True), (100, 6, False)]


@pytest.mark.parametrize(("of_a_kind", "marked", "judged"), FEW)
def test_claims_rest_on_a_kind_of_pieces_of_which_few_are_disturbed(tmp_path, of_a_kind, marked, judged):
    """However many quiet pieces of another kind there are."""
    run = disturbed_run(tmp_path)
    for k in range(500):
        run.piece_now(f"pair {k}", lambda: 0)
    for k in range(of_a_kind):
        run.monitor.words, run._stayed = ["busy"] * 3 * (k < marked), 0
        run.piece_now(f"prompt {k}", lambda: 0)
    assert run.busy()["disturbed"] == marked
    assert (run.disturbed() == "") is judged


def test_where_it_stays_busy_nothing_is_repeated_until_it_is_quiet(tmp_path, capsys):
    words = ["busy"] * 11 + ["", "busy", ""]
    run, taken = disturbed_run(tmp_path, *words), []
    for k in range(7):
        run.piece_now(str(k), lambda k=k: taken.append(k))
    assert taken == [0] * 3 + [1] * 3 + [2] * 3 + [3, 4, 5, 6, 6]
    assert capsys.readouterr().err.count("stays busy") == 1
    assert "busy in 5 of 7 pieces of one kind of device" in run.disturbed()


def test_what_is_no_time_says_nothing_of_how_busy_it_is(tmp_path):
    """Between pieces that stay disturbed, one that is not timed does not begin the repeating anew."""
    run, taken = disturbed_run(tmp_path, *["busy"] * 11), []
    for k in range(3):
        run.piece_now(str(k), lambda: 0)
    asyncio.run(run.piece("untimed", lambda: asyncio.sleep(0), timed=False))
    run.piece_now("3", lambda: taken.append(3))
    assert taken == [3]


def test_an_endpoint_that_misses_its_deadline_is_asked_again(tmp_path, capsys):
    async def work(fails):
        run = a_run(tmp_path, "device", cores=2)
        run.monitor, left = Signs(), [StalledError("server", "sent nothing for 10 s")] * fails

        async def take():
            if left:
                raise left.pop()
            return 7

        return await run.piece(f"after {fails}", take)

    assert asyncio.run(work(2)) == 7
    assert capsys.readouterr().err.count("sent nothing for 10 s; measured again") == 2
    with pytest.raises(StalledError):
        asyncio.run(work(3))


def test_what_is_no_time_is_not_disturbed(tmp_path):
    run, taken = disturbed_run(tmp_path, *["busy"] * 9, cores=0), []
    run.piece_now("a", lambda: taken.append(0))
    assert taken == [0]
    assert run.disturbed() == ""

    async def untimed():
        run = disturbed_run(tmp_path / "other", *["busy"] * 9)
        run.journal.parent.mkdir()
        await run.piece("b", lambda: asyncio.sleep(0), timed=False)
        return run.busy()["disturbed"]

    assert asyncio.run(untimed()) == 0


SPIN = "import time; end = time.monotonic() + 2\nwhile time.monotonic() < end: pass"


def test_what_other_programs_take_is_seen():
    """A process whose parent has ended is nobody's child here."""
    script = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SPIN!r}], start_new_session=True)"
    subprocess.run([sys.executable, "-c", script], check=True)
    monitor = busy.Monitor(2)
    with monitor.reading() as reading:
        time.sleep(1.5)
    assert reading.others_cores > 0.4


def test_what_our_own_processes_take_is_not_others(monkeypatch):
    still = busy.psutil.cpu_times()
    monkeypatch.setattr(busy.psutil, "cpu_times", lambda: still)
    _, before = busy.others_cpu_s()
    with subprocess.Popen([sys.executable, "-c", SPIN]) as child:
        time.sleep(1.5)
        _, after = busy.others_cpu_s()
        child.kill()
    assert before - after > 0.4


def test_a_machine_that_is_slower_by_a_factor_is_not_disturbed(monkeypatch):
    times = iter([0.03] * 20 + [0.03, 0.09, 0.09])
    monkeypatch.setattr(busy, "fixed_work_s", lambda: next(times))
    monkeypatch.setattr(busy, "others_cpu_s", lambda: (time.monotonic(), 0.0))
    monitor, words = busy.Monitor(2, cores=2), []
    for _ in range(22):
        with monitor.reading() as reading:
            pass
        words.append(reading.disturbed)
    assert words[:20] == [""] * 20
    assert "2.0 times as long" in words[20]
    assert "3.0 times as long" in words[21]


@pytest.mark.parametrize(
    ("cores", "needed", "others", "said"),
    # two busy loops beside work of one core leave it two thirds of one and take 1.33 of two
    [(2, 2, 0.2, ""), (2, 2, 0.4, "0.4 of 2"), (8, 2, 3, ""), (2, 1, 1.05, ""), (2, 1, 1.2, "1.2 of 2")],
)
def test_cores_that_are_not_needed_may_be_taken(monkeypatch, cores, needed, others, said):
    clock = iter((k * 2.0, k * 2.0 * others) for k in range(3))
    monkeypatch.setattr(busy, "others_cpu_s", lambda: next(clock))
    monitor = busy.Monitor(needed, cores=cores)
    with monitor.reading() as reading:
        pass
    assert (said in reading.disturbed) if said else reading.disturbed == ""


def test_a_late_loop_is_seen():
    async def work():
        monitor = busy.Monitor(2, cores=64)
        watch = asyncio.create_task(monitor.watch())
        await asyncio.sleep(0.05)
        with monitor.reading() as reading:
            time.sleep(0.3)  # blocks the loop
            await asyncio.sleep(0.02)
        watch.cancel()
        return reading

    assert asyncio.run(work()).lag_s > 0.2


# what is hashed


def test_the_hash_is_of_code_not_of_words(tmp_path, monkeypatch):
    before = code.code_digest(live.measure)
    assert before == code.code_digest(live.measure)
    assert code.code_digest(device.measure) != before
    module = live.__file__
    text = Path(module).read_text()
    other = tmp_path / "live.py"
    for changed, same in (
        (text.replace('"""Answers from two live ends', '"""Other words'), True),
        (text + "\n# a comment\n", True),
        (text.replace("RATE_TRIALS, RATE_TOKENS = 6, 24", "RATE_TRIALS, RATE_TOKENS = 6, 25"), False),
    ):
        other.write_text(changed)
        monkeypatch.setattr(live, "__file__", str(other))
        assert (code.code_digest(live.measure) == before) is same


# what cannot be measured


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
