"""One function over a grid of cells, on threads of this machine or on a Dask cluster, with the same rows from either.

The rows come in the order of the cells, whichever finishes first. A cell holds the seeds of its random numbers and is
not changed by the function, so that a table has the same bytes on any number of threads, workers and machines.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import pandas as pd
from tqdm import tqdm

from artifact.errors import ArtifactError
from disco_core import checks

ADDRESS = "DASK_SCHEDULER_ADDRESS"  # the name that Dask itself reads
CONNECT_S = 5.0  # a scheduler that has not answered by then is unreachable
Row = Mapping[str, Any]


def sweep(
    function: Callable[..., Row | Iterable[Row]], cells: Iterable[Mapping[str, Any]], *, threads: int = 1
) -> pd.DataFrame:
    """One table of what `function(**cell)` returns for every cell: one row or several, each a dict.

    threads  of this machine, where DASK_SCHEDULER_ADDRESS names no cluster (its workers need this environment). A
             second one slows down cells of many short calls, since Python runs one at a time; for speed start a
             cluster, on this machine or on several.

    ArtifactError if a cell fails, naming it, or the scheduler does not answer. An interrupt cancels all other cells.
    """
    checks.count(threads, "threads")
    listed, rows = [dict(cell) for cell in cells], list[Row]()
    with _executor(threads) as executor:
        futures = [executor.submit(_rows, function, cell) for cell in listed]
        bar = tqdm(futures, desc="sweep", unit="cell", mininterval=1.0, ncols=80, leave=False)
        for cell, future in zip(listed, bar, strict=True):
            try:
                rows += future.result()
            except CancelledError as error:
                raise ArtifactError(f"the Dask scheduler at {os.environ.get(ADDRESS)} was lost") from error
            except Exception as error:
                named = ", ".join(f"{name}={value!r:.60}" for name, value in cell.items())
                raise ArtifactError(f"the cell {named} failed: {type(error).__name__}: {error}") from error
    return pd.DataFrame(rows)


def _rows(function: Callable[..., Row | Iterable[Row]], cell: Mapping[str, Any]) -> list[Row]:
    result = function(**cell)
    return [result] if isinstance(result, Mapping) else [dict(row) for row in result]


@contextmanager
def _executor(threads: int) -> Iterator[Any]:
    """Threads of this machine, or the cluster at DASK_SCHEDULER_ADDRESS; its unfinished cells end with the block."""
    if address := os.environ.get(ADDRESS):
        client = _connect(address)
        cluster = client.get_executor(pure=False)
        try:
            yield cluster
        finally:
            cluster.shutdown(wait=False)
            client.close()
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _connect(address: str) -> Any:
    from distributed import Client  # imported when it is needed, since it takes a second

    answer: SimpleQueue[Any] = SimpleQueue()

    def connect() -> None:
        try:
            answer.put(Client(address, timeout=CONNECT_S, set_as_default=False))  # type: ignore[no-untyped-call]
        except Exception as error:
            answer.put(error)

    # in a thread, since Dask waits for ever for a server that accepts the connection and sends nothing
    Thread(target=connect, daemon=True).start()
    try:
        client = answer.get(timeout=2 * CONNECT_S)
    except Empty:
        client = TimeoutError(f"what listens at {address} does not speak Dask's protocol")
    if isinstance(client, Exception):
        raise ArtifactError(f"no Dask scheduler answers at {ADDRESS}={address}: {' '.join(str(client).split())}")
    return client
