"""A sweep gives the rows of a plain loop, on threads and on Dask alike, and names what failed."""

import gc
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
from tqdm import TMonitor

import disco_core as dc
from artifact.analysis import sweep as module
from artifact.analysis.sweep import sweep
from artifact.data import traces
from artifact.errors import ArtifactError
from artifact.files import ROOT


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv(module.ADDRESS, raising=False)


@pytest.fixture
def cluster(monkeypatch):
    """A Dask cluster of two workers at DASK_SCHEDULER_ADDRESS."""
    from distributed import LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
    with LocalCluster(processes=False, protocol="tcp", **options) as started:
        monkeypatch.setenv(module.ADDRESS, started.scheduler_address)
        yield started


def test_rows_are_those_of_a_plain_loop_whichever_finishes_first():
    def cell(b, seed):
        time.sleep(0.03 * (1 - b))  # the first are the last to finish
        drawn = np.random.default_rng(seed).random(3)
        return [{"b": b, "k": k, "x": x, "name": f"é {k}", "no": np.nan, "low": x < 0.5} for k, x in enumerate(drawn)]

    seeds = np.random.SeedSequence(0).spawn(6)
    cells = [{"b": b, "seed": seed} for b, seed in zip(np.linspace(0, 1, 6), seeds, strict=True)]
    plain = pd.DataFrame([row for one in cells for row in cell(**one)])
    for threads in (1, 3):
        pd.testing.assert_frame_equal(sweep(cell, cells, threads=threads), plain, check_exact=True)


def test_a_cell_may_give_no_row_one_or_several():
    def cell(n):
        return {"n": n} if n == 1 else ({"n": n} for _ in range(n))

    assert sweep(cell, [{"n": n} for n in (2, 0, 1)]).n.tolist() == [2, 2, 1]
    assert sweep(cell, []).empty


@pytest.mark.parametrize(
    ("function", "cell", "message"),
    [
        (lambda n: {"n": 1 / n}, {"n": 0}, "the cell n=0 failed: ZeroDivisionError: division by zero"),
        (lambda n: n, {"n": 3}, "the cell n=3 failed: TypeError"),
        (lambda n: [n], {"n": 3}, "the cell n=3 failed: TypeError"),
        (lambda n: {"n": n}, {"m": "x" * 99}, f"the cell m='{'x' * 59} failed: TypeError"),
    ],
)
def test_the_error_names_the_cell(function, cell, message):
    with pytest.raises(ArtifactError, match=re.escape(message)) as error:
        sweep(function, [cell])
    assert error.value.__cause__ is not None


def interrupted(cell, threads):
    """Sweep until a cell sends an interrupt; seconds that the sweep took."""
    gc.collect()
    gc.disable()  # Python loses an interrupt that comes while a finalizer runs
    try:
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            sweep(cell, [{"n": n} for n in range(40)], threads=threads)
        return time.monotonic() - start
    finally:
        gc.enable()


def working():
    """Threads but for the one with which tqdm watches its bars, which stays from the first bar on."""
    return [thread for thread in threading.enumerate() if not isinstance(thread, TMonitor)]


def interrupting_cell(calls):
    main = threading.main_thread().ident

    def cell(n):
        with calls.open("a") as file:
            file.write(f"{n}\n")
        if n == 2:
            signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.2)
        return {"n": n}

    return cell


@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupt_leaves_nothing_running(tmp_path, threads):
    before = working()
    assert interrupted(interrupting_cell(tmp_path / "calls"), threads) < 3
    assert working() == before
    assert len((tmp_path / "calls").read_text().split()) < 8


@pytest.mark.slow
def test_an_interrupt_cancels_the_cells_on_a_cluster(tmp_path, cluster):
    calls = tmp_path / "calls"
    assert interrupted(interrupting_cell(calls), 1) < 5
    time.sleep(0.5)  # those that run are finished
    begun = calls.read_text()
    time.sleep(0.5)
    assert calls.read_text() == begun
    assert len(begun.split()) < 30


# a real sweep


PROMPT = traces.lengths("alpaca", "prompt")


def point(service, replicate, ttft, b):
    """DiSCo-D on one bootstrap draw of a public trace."""
    load = dc.Workload.sample(300, PROMPT, PROMPT, np.random.default_rng(1))
    plan = dc.plan_device_constrained(PROMPT, ttft, b)
    endpoints = dc.ServerProfile(ttft, 50.0), dc.DeviceProfile(30.0, 14.0)
    result = dc.simulate(load, plan, *endpoints, rng=np.random.default_rng(2))
    return {"service": service, "replicate": replicate, "b": b} | result.summary()


def grid():
    services = {name: traces.service(name) for name in ("gpt-4o-mini", "deepseek-chat")}
    drawn = traces.replicates(services, 3, np.random.default_rng(0))
    return [cell | {"b": b} for cell in drawn for b in (0.1, 0.5)]


@pytest.mark.slow
def test_dask_threads_and_a_plain_loop_give_the_same_bytes(monkeypatch, cluster):
    plain = pd.DataFrame([point(**cell) for cell in grid()]).to_csv()
    assert sweep(point, grid()).to_csv() == plain
    with pytest.raises(ArtifactError, match="the cell n=0 failed: ZeroDivisionError"):
        sweep(lambda n: {"n": 1 / n}, [{"n": 1}, {"n": 0}])
    monkeypatch.delenv(module.ADDRESS)
    assert sweep(point, grid(), threads=2).to_csv() == plain


def test_replicates_are_the_f_of_each_service_and_then_draws_of_it():
    services = {name: traces.service(name) for name in ("gpt-4o-mini", "deepseek-chat")}
    rng = np.random.default_rng(0)
    cells = list(traces.replicates(services, 2, np.random.default_rng(0)))
    for cell in cells:
        service = services[cell["service"]]
        expected = service.ttft if cell["replicate"] == 0 else service.resample(rng)
        assert np.array_equal(cell["ttft"].values_s, expected.values_s)
    assert [(cell["service"], cell["replicate"]) for cell in cells] == [(n, k) for n in services for k in range(3)]


def test_each_replicate_has_other_seeds_and_the_first_those_of_the_seed_itself():
    first, *others = (traces.streams(7, k, 2) for k in range(3))
    plain = np.random.SeedSequence(7).spawn(4)
    drawn = [[np.random.default_rng(one).random() for one in each] for each in (plain[:2], first, *others)]
    assert drawn[0] == drawn[1]
    assert len({u for each in drawn[1:] for u in each}) == 6


# a scheduler that cannot be reached


@pytest.mark.parametrize("scheme", ["tcp", "tls", "nowhere"])
def test_an_unreachable_scheduler_is_named_at_once(monkeypatch, scheme):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{scheme}://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv(module.ADDRESS, address)
    monkeypatch.setattr(module, "CONNECT_S", 1.0)
    start = time.monotonic()
    with pytest.raises(ArtifactError, match=f"no Dask scheduler answers at {module.ADDRESS}={address}: ") as error:
        sweep(lambda n: {"n": n}, [{"n": 1}])
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 10


def test_a_server_that_sends_nothing_is_no_scheduler(monkeypatch):
    monkeypatch.setattr(module, "CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(module.ADDRESS, f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ArtifactError, match=r"no Dask scheduler answers .* does not speak Dask's protocol"):
            sweep(lambda n: {"n": n}, [{"n": 1}])


def test_dask_is_not_imported_before_it_is_needed():
    code = "import sys, artifact.analysis.sweep; sys.exit(len({'dask', 'distributed'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=os.environ | {"PYTHONPATH": "notebooks"})
