"""A busy machine is noticed, and what was measured meanwhile is measured again or marked."""

import asyncio
import contextlib
import subprocess
import sys
import time

import pytest

from artifact.measure import busy, pieces
from disco_core.errors import StalledError
from tests.helpers import scripts
from tests.helpers.measuring import a_run


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Nothing waits before another try."""
    monkeypatch.setattr(pieces, "WINDOW_S", 0.0)


class Signs(busy.Monitor):
    """A monitor that does not look at the machine: it finds the next of the given words at each try of a piece."""

    def __init__(self, *words):
        super().__init__(2)
        self.words = list(words)

    @contextlib.contextmanager
    def reading(self):
        found = busy.Reading()
        yield found
        found.disturbed = self.words.pop(0) if self.words else ""


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


def test_a_piece_that_is_not_timed_says_nothing_of_how_busy_the_machine_is(tmp_path):
    """Between pieces that stay disturbed, one that is not timed does not begin the repeating anew."""
    run, taken = disturbed_run(tmp_path, *["busy"] * 11), []
    for k in range(3):
        run.piece_now(str(k), lambda: 0)
    asyncio.run(run.piece("untimed", lambda: asyncio.sleep(0), timed=False))
    run.piece_now("3", lambda: taken.append(3))
    assert taken == [3]


def test_a_piece_whose_endpoint_misses_its_deadline_is_measured_again(tmp_path, capsys):
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


def test_what_other_programs_take_is_noticed():
    """A process whose parent has ended is nobody's child here."""
    subprocess.run([sys.executable, scripts.path("spin.py"), "orphan"], check=True)
    monitor = busy.Monitor(2)
    with monitor.reading() as reading:
        time.sleep(1.5)
    assert reading.others_cores > 0.4


def test_what_our_own_processes_take_is_not_others(monkeypatch):
    still = busy.psutil.cpu_times()
    monkeypatch.setattr(busy.psutil, "cpu_times", lambda: still)
    _, before = busy.others_cpu_s()
    with subprocess.Popen([sys.executable, scripts.path("spin.py")]) as child:
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
    assert "2.0 times its median" in words[20]
    assert "3.0 times its median" in words[21]


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


def test_a_late_event_loop_is_noticed():
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
