"""Sweeps: the rows of a plain loop on threads and clusters alike; what was finished is not lost nor done twice."""

import contextlib
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import disco_core as dc
from artifact.analysis import sweep as module
from artifact.analysis.sweep import sweep
from artifact.data import traces
from artifact.errors import ArtifactError, SweepError
from artifact.files import ROOT
from disco_core.errors import InputError


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """Where finished cells are kept: not in the project."""
    monkeypatch.setattr(module, "BUILD", tmp_path / "build")
    monkeypatch.delenv(module.ADDRESS, raising=False)
    return tmp_path / "build" / "sweeps"


def lines(folder):
    return [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines() if line]


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def test_rows_are_those_of_a_plain_loop_whatever_finishes_first(kept):
    def cell(b, seed):
        time.sleep(0.03 * (1 - b))  # the first are the last to finish
        drawn = np.random.default_rng(seed).random(3)
        return [{"b": b, "k": k, "x": x, "name": f"é {k}", "no": np.nan, "low": x < 0.5} for k, x in enumerate(drawn)]

    seeds = np.random.SeedSequence(0).spawn(6)
    cells = [{"b": b, "seed": seed} for b, seed in zip(np.linspace(0, 1, 6), seeds, strict=True)]
    plain = pd.DataFrame([row for one in cells for row in cell(**one)])
    pd.testing.assert_frame_equal(sweep(cell, cells), plain, check_exact=True)


@settings(max_examples=30)
@given(st.lists(st.floats(allow_nan=False), max_size=6))
def test_every_number_comes_back_as_it_was(values):
    found = sweep(lambda x: {"x": x, "f": np.float64(x), "i": np.int64(3)}, [{"x": x} for x in values])
    assert len(found) == len(values)
    if values:
        assert np.array_equal(found.x.to_numpy(), np.array(values))
        assert found.f.to_numpy().tobytes() == np.array(values).tobytes()
        assert found.i.dtype == np.int64


def test_a_cell_may_give_no_row_and_equal_cells_are_one(tmp_path):
    def cell(n):
        with (tmp_path / "calls").open("a") as file:
            file.write("x")
        return [{"n": n}] * n

    assert sweep(cell, [{"n": n} for n in (2, 0, 1, 2)]).n.tolist() == [2, 2, 1, 2, 2]
    assert (tmp_path / "calls").read_text() == "xxx"


def flaky(tmp_path):
    """A cell that fails as long as there is no file "ready", and notes each time it was finished."""

    def cell(n):
        if n == 5 and not (tmp_path / "ready").exists():
            time.sleep(0.5)  # let the others finish
            raise ValueError("not ready")
        with (tmp_path / "calls").open("a") as file:
            file.write(f"{n}\n")
        return {"n": n, "squared": n * n}

    return cell


def test_a_cell_that_fails_is_named_and_the_others_are_kept(tmp_path, kept):
    cell, cells = flaky(tmp_path), [{"n": n} for n in range(6)]
    with pytest.raises(SweepError, match="cell n=5 failed: ValueError: not ready; 5 of 6 cells are kept") as error:
        sweep(cell, cells)
    assert (error.value.kept, error.value.cells, error.value.address) == (5, 6, None)
    assert isinstance(error.value.__cause__, ValueError)
    assert len(lines(kept)) == 5
    (path,) = kept.glob("*")
    path.write_text(path.read_text() + '\n{"cell": "cut in the mid')
    (tmp_path / "ready").touch()
    assert sweep(cell, cells).squared.tolist() == [0, 1, 4, 9, 16, 25]
    assert sweep(cell, [*cells, {"n": 6}]).n.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert sorted((tmp_path / "calls").read_text().split()) == ["0", "1", "2", "3", "4", "5", "6"]


def test_finished_cells_are_kept_of_the_functions_used_last(kept, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 2)
    for k, shift in enumerate([0, 1, 0, 2]):
        sweep(compiled(SOURCE, shift=shift), [{"n": 1}])
        for age, path in enumerate(sorted(kept.glob("*"), key=lambda one: one.stat().st_mtime)):
            os.utime(path, (k + age / 10, k + age / 10))
    left = {path.name for path in kept.glob("*")}
    assert left == {module._kept_in(compiled(SOURCE, shift=shift)).name for shift in (0, 2)}


def test_kept_cells_rest_on_the_code_and_the_tables_that_a_cell_may_use():
    names = {str(path.relative_to(ROOT)) for path in module._sources()}
    assert {"disco_core/simulate.py", "notebooks/artifact/analysis/scenario.py", "data/phones.csv"} <= names
    assert not [name for name in names if "/measure/" in name or "/publish/" in name or "claims" in name]


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: "\x00" * 40, lambda text: "[]\n3\n{}"])
def test_kept_cells_that_were_damaged_are_done_again(tmp_path, kept, damage):
    cell, cells = flaky(tmp_path), [{"n": n} for n in range(6)]
    with pytest.raises(SweepError):
        sweep(cell, cells)
    (path,) = kept.glob("*")
    path.write_text(damage(path.read_text()))
    (tmp_path / "ready").touch()
    assert sweep(cell, cells).squared.tolist() == [0, 1, 4, 9, 16, 25]


def compiled(text, filename="a.py", **names):
    """The function `cell` of a text, as a notebook's kernel makes it."""
    names = {"__name__": "__main__", **names}
    exec(compile(text, filename, "exec"), names)
    return names["cell"]


SOURCE = "def helper(n):\n    return n + shift\n\ndef cell(n):\n    return {'n': helper(n)}\n"


def test_kept_cells_are_another_function_s_if_anything_it_refers_to_changed():
    ttft = dc.TTFTDistribution([0.1, 0.2])
    same = {module._kept_in(compiled(SOURCE, name, shift=ttft)) for name in ("/tmp/1/a.py", "/tmp/2/b.py")}
    assert ttft.mean_min(0.15) > 0  # which caches something on it
    same.add(module._kept_in(compiled("\n\n" + SOURCE, shift=ttft)))
    assert len(same) == 1
    others = [compiled(SOURCE, shift=dc.TTFTDistribution([0.1, 0.3])), compiled(SOURCE.replace("+", "-"), shift=ttft)]
    assert len(same | {module._kept_in(other) for other in others}) == 3


@pytest.mark.parametrize(
    ("function", "cells", "told"),
    [
        (lambda n: {"n": n}, [3], "cells must be dicts"),
        (lambda n: {"n": n}, [{"n": open}, {"n": sys._getframe()}], "a kind that can be sent"),
        (lambda n: n, [{"n": 3}], "the cell n=3 failed: InputError: a row is a dict, not 3"),
        (lambda n: [n], [{"n": 3}], "a row is a dict, not 3"),
        (lambda n: {"n": {3}}, [{"n": 3}], "a row holds numbers and texts, not {3}"),
        (lambda n: {"n": n}, [{"m": 3}], "the cell m=3 failed: TypeError"),
    ],
)
def test_what_is_no_cell_and_no_row_is_told(function, cells, told):
    with pytest.raises((InputError, SweepError), match=re.escape(told)):
        sweep(function, cells)


def test_a_folder_that_cannot_be_written_is_named(kept):
    kept.parent.mkdir()
    kept.write_text("")
    with pytest.raises(ArtifactError, match=r"cannot keep finished cells in .*sweeps"):
        sweep(lambda n: {"n": n}, [{"n": 1}])


SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np
from artifact.analysis import sweep

sweep.BUILD, calls = Path(sys.argv[1]), Path(sys.argv[2])

def cell(n, seed):
    if n > 2:
        while not (calls.parent / "ready").exists():
            time.sleep(0.05)
    with calls.open("a") as file:
        file.write(f"{n}\\n")
    return {"n": n, "x": np.random.default_rng(seed).random()}

cells = [{"n": n, "seed": seed} for n, seed in enumerate(np.random.SeedSequence(7).spawn(5))]
print(sweep.sweep(cell, cells).to_csv())
"""


@pytest.mark.slow
def test_after_ctrl_c_another_process_goes_on_from_there(tmp_path, kept):
    script, calls = tmp_path / "script.py", tmp_path / "calls"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(kept.parent), str(calls)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "notebooks")}
    attend = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=attend, env=environment)
    until(lambda: len(lines(kept)) == 3)
    first.send_signal(signal.SIGINT)
    time.sleep(0.2)
    (tmp_path / "ready").touch()  # those that run are waited for
    _, told = first.communicate(timeout=60)
    assert "KeyboardInterrupt\n3 of 5 cells are kept, and the same sweep goes on from there" in told
    assert len(lines(kept)) == 3
    done = calls.read_text().split()
    calls.unlink()
    second = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    drawn = [np.random.default_rng(seed).random() for seed in np.random.SeedSequence(7).spawn(5)]
    assert second.stdout.strip() == pd.DataFrame({"n": range(5), "x": drawn}).to_csv().strip()
    assert set(done) >= {"0", "1", "2"}
    assert sorted(calls.read_text().split()) == ["3", "4"]


# beyond this machine's threads


def point(service, replicate, ttft, b):
    """A real cell: DiSCo-D on one bootstrap draw of a public trace."""
    load = dc.Workload.sample(300, PROMPT, PROMPT, np.random.default_rng(1))
    plan = dc.plan_device_constrained(PROMPT, ttft, b)
    ends = dc.ServerProfile(ttft, 50.0), dc.DeviceProfile(30.0, 14.0)
    result = dc.simulate(load, plan, *ends, rng=np.random.default_rng(2))
    return {"service": service, "replicate": replicate, "b": b} | result.summary()


PROMPT = traces.lengths("alpaca", "prompt")


def grid():
    services = {name: traces.service(name) for name in ("gpt-4o-mini", "deepseek-chat")}
    drawn = traces.replicates(services, 3, np.random.default_rng(0))
    return [cell | {"b": b} for cell in drawn for b in (0.1, 0.5)]


def test_replicates_are_each_service_s_own_f_and_then_draws_of_it():
    services = {name: traces.service(name) for name in ("gpt-4o-mini", "deepseek-chat")}
    found = list(traces.replicates(services, 2, np.random.default_rng(0)))
    rng = np.random.default_rng(0)
    for cell in found:
        service = services[cell["service"]]
        expected = service.ttft if cell["replicate"] == 0 else service.resample(rng)
        assert np.array_equal(cell["ttft"].values_s, expected.values_s)
    assert [(cell["service"], cell["replicate"]) for cell in found] == [(n, k) for n in services for k in range(3)]


def test_a_replicate_draws_its_own_and_the_first_is_the_seed_s():
    first, *others = (traces.streams(7, k, 2) for k in range(3))
    plain = np.random.SeedSequence(7).spawn(4)
    drawn = [[np.random.default_rng(one).random() for one in each] for each in (plain[:2], first, *others)]
    assert drawn[0] == drawn[1]
    assert len({u for each in drawn[1:] for u in each}) == 6


@pytest.mark.slow
def test_two_workers_give_the_bytes_of_this_machine_s_threads():
    from distributed import Client, LocalCluster

    plain = pd.DataFrame([point(**cell) for cell in grid()]).to_csv()
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        spread = sweep(point, grid(), client=client)
        with pytest.raises(SweepError, match=r"the cell n=0 failed: ZeroDivisionError.* \(scheduler tcp://127.*\); "):
            sweep(lambda n: {"n": 1 / n}, [{"n": 0}], client=client)
    assert spread.to_csv() == sweep(point, grid()).to_csv() == plain


CLUSTER = """
import time
from distributed import LocalCluster

if __name__ == "__main__":
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None)
    print(cluster.scheduler_address, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Another process's cluster of two workers, at DASK_SCHEDULER_ADDRESS; a call ends all of it at once."""
    script = tmp_path / "cluster.py"
    script.write_text(CLUSTER)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "notebooks")}
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )

    def end():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    try:
        address = process.stdout.readline().strip()
        monkeypatch.setenv(module.ADDRESS, address)
        end.address = address
        yield end
    finally:
        end()
        process.stdout.close()


@pytest.mark.slow
def test_when_the_cluster_goes_away_finished_cells_are_kept(tmp_path, kept, monkeypatch, cluster):
    monkeypatch.setattr(module, "CONNECT_S", 2.0)
    ready = tmp_path / "ready"

    def cell(n):
        while n > 3 and not ready.exists():
            time.sleep(0.05)
        with (tmp_path / "calls").open("a") as file:
            file.write(f"{n}\n")
        return {"n": n, "pid": os.getpid() == here}

    here, cells = os.getpid(), [{"n": n} for n in range(8)]

    def end_in_mid_sweep():
        until(lambda: len(lines(kept)) == 4)
        cluster()

    thread = threading.Thread(target=end_in_mid_sweep)
    thread.start()
    start = time.monotonic()
    with pytest.raises(SweepError, match=r"the cluster went away.*; 4 of 8 cells are kept") as error:
        sweep(cell, cells)
    thread.join()
    assert time.monotonic() - start < 30
    assert error.value.address == cluster.address
    assert cluster.address in str(error.value)
    with pytest.raises(SweepError, match=r"no Dask scheduler answers where DASK_SCHEDULER_ADDRESS .*; 4 of 8 cells"):
        sweep(cell, cells)
    monkeypatch.delenv(module.ADDRESS)
    ready.touch()
    found = sweep(cell, cells)
    assert found.n.tolist() == list(range(8))
    assert found.pid.tolist() == [False] * 4 + [True] * 4
    assert sorted((tmp_path / "calls").read_text().split()) == list("01234567")


@pytest.mark.parametrize("scheme", ["tcp", "tls", "nowhere"])
def test_a_scheduler_that_does_not_answer_is_named_at_once(monkeypatch, scheme):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{scheme}://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv(module.ADDRESS, address)
    monkeypatch.setattr(module, "CONNECT_S", 1.0)
    start = time.monotonic()
    with pytest.raises(SweepError, match=f"no Dask scheduler answers .*scheduler {address}.*; 0 of 1 cells"):
        sweep(lambda n: {"n": n}, [{"n": 1}])
    assert time.monotonic() - start < 10


def test_what_takes_the_connection_and_says_nothing_is_no_scheduler(monkeypatch):
    monkeypatch.setattr(module, "CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(module.ADDRESS, f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(SweepError, match=r"no Dask scheduler answers .* does not speak Dask"):
            sweep(lambda n: {"n": n}, [{"n": 1}])


def test_dask_is_not_imported_before_it_is_asked_for():
    code = "import sys, artifact.analysis.sweep; sys.exit(len({'dask', 'distributed'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
