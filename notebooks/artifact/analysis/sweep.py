"""A grid of cells through one function, on threads of this machine or on a Dask cluster.

The rows come in the order of the cells, whatever finishes first, and every cell runs on a copy of its own, so that a
table is the same bytes on any number of threads, workers and machines. What is random in a cell takes its seed from
the cell. Finished cells are kept: the next call goes on from where one was stopped, and the same call computes
nothing again.
"""

import copyreg
import hashlib
import io
import json
import os
import pickle
import types
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import pandas as pd
from tqdm import tqdm

import disco_core
from artifact.errors import ArtifactError, SweepError
from artifact.files import BUILD, DATA
from disco_core import checks
from disco_core.errors import InputError

if TYPE_CHECKING:
    from distributed import Client

ADDRESS = "DASK_SCHEDULER_ADDRESS"  # the name that Dask itself reads
CONNECT_S = 5.0  # a scheduler that has not answered by then is not there
PATIENCE_S = 30.0  # a cluster without a worker for so long is not coming back
KEPT = 20  # files of finished cells: more than all notebooks make, in their quick and full size
_ARTIFACT = Path(__file__).resolve().parents[1]


def sweep(
    function: Callable[..., Mapping[str, Any] | Iterable[Mapping[str, Any]]],
    cells: Iterable[Mapping[str, Any]],
    *,
    client: "Client | None" = None,
    threads: int = 1,
) -> pd.DataFrame:
    """One table of what `function(**cell)` gives for every cell: a row or several, dicts of numbers and texts.

    client   a Dask client; None: of the scheduler at DASK_SCHEDULER_ADDRESS, or where that is not set, none. For
             speed take a cluster, be it of this machine; its machines need this project's environment.
    threads  of this machine, where there is no cluster. Cells of many calls on small arrays lose by a second one,
             since Python runs one at a time and the two wait for each other.

    Finished cells are kept in build/sweeps/, those of the `KEPT` functions used last, under a digest of the function
    with all it refers to, of the code and the tables it may use, and of the cell; other packages are taken to stay
    as they are.

    SweepError where a cell fails, the scheduler does not answer, or the cluster goes away; InputError for cells or
    rows of another kind.
    """
    checks.count(threads, "threads")
    try:
        packed = [_digestible(dict(cell)) for cell in cells]
        code, path = cloudpickle.dumps(function), _kept_in(function)
    except (TypeError, ValueError, pickle.PicklingError) as error:
        raise InputError(f"cells must be dicts, and like the function of a kind that can be sent: {error}") from None
    keys, kept = [hashlib.sha256(cell).hexdigest() for cell in packed], _read(path)
    found = {key: kept[key] for key in keys if key in kept}
    missing = {key: cell for key, cell in zip(keys, packed, strict=True) if key not in found}
    if missing:
        _run_missing(code, missing, found, path, client, threads)
    _prune(path)
    return pd.DataFrame([row for key in keys for row in found[key]])


def _run_missing(
    code: bytes,
    missing: dict[str, bytes],
    found: dict[str, list[Any]],
    path: Path,
    client: "Client | None",
    threads: int,
) -> None:
    """Add the rows of every missing cell to `found`, and keep each as it comes."""
    cells = len(missing) + len(found)
    address = os.environ.get(ADDRESS) or None if client is None else getattr(client.scheduler, "address", None)
    told = {"total": cells, "initial": len(found), "unit": "cell", "disable": None}
    try:
        with _workers(client, threads) as (submit, cluster):
            futures = {submit(_run, code, cell): key for key, cell in missing.items()}
            for future in tqdm(_finished(futures, cluster), **told):
                key = futures[future]
                text = _result(future, missing[key], cluster)
                _keep(path, key, text)
                found[key] = json.loads(text)
    except _StoppedError as error:
        raise SweepError(str(error), len(found), cells, address) from error.__cause__
    except KeyboardInterrupt as error:
        error.add_note(f"{len(found)} of {cells} cells are kept, and the same sweep goes on from there")
        raise


class _StoppedError(Exception):
    """What stopped a sweep, before it is told with what is kept."""


def _run(code: bytes, cell: bytes) -> str:
    """One cell, wherever it runs: its rows as JSON, which gives every float back as it was."""
    given = cloudpickle.loads(code)(**cloudpickle.loads(cell))
    rows = list(given) if isinstance(given, Iterable) and not isinstance(given, Mapping) else [given]
    for row in rows:
        if not isinstance(row, Mapping):
            raise InputError(f"a row is a dict, not {row!r:.80}")
    return json.dumps([dict(row) for row in rows], default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise InputError(f"a row holds numbers and texts, not {value!r:.80}")


# where cells run


@contextmanager
def _workers(client: Any, threads: int) -> Iterator[tuple[Callable[..., Any], Any]]:
    """How a cell is submitted, and the cluster it goes to, if any; what is not finished ends with the block."""
    address = os.environ.get(ADDRESS)
    if client is None and not address:
        pool = ThreadPoolExecutor(threads)
        try:
            yield pool.submit, None
        finally:
            pool.shutdown(cancel_futures=True)
        return
    cluster, asked = client or _connect(str(address)), list[Any]()

    def submit(*call: Any) -> Any:
        try:
            asked.append(cluster.submit(*call, pure=False))
        except Exception as error:
            raise _StoppedError(f"the cluster went away: {error}") from error
        return asked[-1]

    try:
        yield submit, cluster
    finally:
        with suppress(Exception):  # where the cluster is gone there is nothing left to cancel
            cluster.cancel([future for future in asked if not future.done()])
        if client is None:
            with suppress(Exception):
                cluster.close()


def _connect(address: str) -> Any:
    from distributed import Client  # takes a second, so not before it is asked for

    came: SimpleQueue[Any] = SimpleQueue()

    def connect() -> None:
        try:
            came.put(Client(address, timeout=CONNECT_S, set_as_default=False))  # type: ignore[no-untyped-call]
        except Exception as error:
            came.put(error)

    # in a thread, as its timeout is none where something else takes the connection and says nothing
    Thread(target=connect, daemon=True).start()
    try:
        found = came.get(timeout=2 * CONNECT_S)
    except Empty:
        found = TimeoutError(f"what is at {address} does not speak Dask")
    if isinstance(found, Exception):
        said = " ".join(str(found).split())
        raise _StoppedError(f"no Dask scheduler answers where {ADDRESS} says: {said}") from None
    return found


def _finished(futures: Collection[Any], cluster: Any) -> Iterator[Any]:
    """The futures as they finish. _StoppedError where the cluster cannot finish them any more."""
    done: SimpleQueue[Any] = SimpleQueue()
    for future in futures:
        future.add_done_callback(done.put)
    seen = monotonic()
    for _ in futures:
        while True:
            try:
                yield done.get(timeout=1.0)
                break
            except Empty:
                seen = monotonic() if cluster is None or _has_workers(cluster) else seen
                if monotonic() - seen > PATIENCE_S:
                    raise _StoppedError(f"the cluster has had no worker for {PATIENCE_S:g} s") from None


def _has_workers(cluster: Any) -> bool:
    if cluster.status in ("closing", "closed"):
        raise _StoppedError("the cluster went away")
    with suppress(Exception):  # between two states of the connection; the next look tells
        return bool(cluster.nthreads())
    return False


def _result(future: Any, cell: bytes, cluster: Any) -> str:
    try:
        return str(future.result(None if cluster is None else PATIENCE_S))
    except CancelledError:
        raise _StoppedError("the cluster went away") from None
    except Exception as error:
        if cluster is not None and future.status != "error":  # finished, but who has the rows is gone
            raise _StoppedError(f"the cluster went away: {error}") from error
        said = ", ".join(f"{name}={value!r:.60}" for name, value in cloudpickle.loads(cell).items())
        raise _StoppedError(f"the cell {said} failed: {type(error).__name__}: {error}") from error


# what is kept


def _kept_in(function: Callable[..., Any]) -> Path:
    total = hashlib.sha256(_digestible(function) + np.__version__.encode())
    for path in _sources():
        total.update(path.read_bytes())
    return BUILD / "sweeps" / f"{total.hexdigest()[:16]}.jsonl"


def _sources() -> list[Path]:
    # what a cell may call and read, which is neither what measures nor what publishes
    core, tables = Path(disco_core.__file__).parent, [path for path in DATA.glob("*.csv") if path.stem != "claims"]
    folders = core, _ARTIFACT / "analysis", _ARTIFACT / "data"
    return sorted([*tables, *(path for folder in folders for path in folder.rglob("*.py"))])


def _prune(path: Path) -> None:
    # the file just used is the newest; those of other code or other tables are not asked for again
    with suppress(OSError):
        path.touch()
        for old in sorted(path.parent.glob("*.jsonl"), key=lambda one: -one.stat().st_mtime)[KEPT:]:
            old.unlink(missing_ok=True)


def _keep(path: Path, key: str, rows: str) -> None:
    # a line begins with its line break, so that one that was cut ends where the next begins
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f'\n{{"cell": "{key}", "rows": {rows}}}')
    except OSError as error:
        raise ArtifactError(f"cannot keep finished cells in {path}: {error.strerror or error}") from None


def _read(path: Path) -> dict[str, list[Any]]:
    kept = {}
    with suppress(OSError):
        for line in path.read_bytes().splitlines():
            with suppress(ValueError, TypeError, KeyError):  # a line that was cut is no line
                one = json.loads(line)
                kept[str(one["cell"])] = [dict(row) for row in one["rows"]]
    return kept


def _digestible(thing: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(thing)
    return buffer.getvalue()


def _code(code: types.CodeType) -> Any:
    # a notebook's cells are compiled under another file name by every kernel
    return cloudpickle.Pickler.dispatch_table[types.CodeType](code.replace(co_filename="", co_firstlineno=1))


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles that tell things apart by what they are: not by where code stands, nor by what was cached on them."""

    dispatch_table: ClassVar[Any] = ChainMap({types.CodeType: _code}, cloudpickle.Pickler.dispatch_table)

    def reducer_override(self, obj: Any) -> Any:
        kinds = [] if isinstance(obj, type) else type(obj).__mro__
        cached = {name for kind in kinds for name, value in vars(kind).items() if isinstance(value, cached_property)}
        if cached:
            state = {name: value for name, value in vars(obj).items() if name not in cached}
            return copyreg.__newobj__, (type(obj),), state  # type: ignore[attr-defined]
        return super().reducer_override(obj)
