"""Streams under faults: a real llama.cpp server behind a proxy, the device model, faults at random moments.

Every lane has a server in a process of its own, a proxy in front of it and a device model, so that faults and
counters belong to one stream; the lanes run beside each other. Two tables, without texts:

    streams      one row a stream: what was done to it, what became of it, what was charged, promises broken
    violations   one row a broken promise: its kind, what is wrong, the stream's record as JSON

`promises` says what is checked, and from which logs.
"""

import asyncio
import gc
import json
import threading
from collections.abc import Iterable
from functools import partial
from typing import Any

import pandas as pd
import psutil

from artifact.data import traces
from artifact.measure.answers import run_in_thread
from artifact.measure.cases import Case, case
from artifact.measure.lane import Lane, owner_of, tagged
from artifact.measure.pieces import Run, Tables
from artifact.measure.promises import Evidence, bounds, broken, generated, prefilled
from disco_core import checks
from disco_core.cost import End
from disco_core.endpoints.base import non_negative_int
from disco_core.record import LATE

TABLES = ("prompts",)
VIOLATIONS = ["stream", "kind", "promise", "what", "record"]
POOL = "asyncio_"  # names of the threads that the event loop keeps for blocking calls


def measure(run: Run) -> Tables:
    """Run `streams` streams, `batch` at a time in `lanes` lanes; `seed` of every draw.

    InputError for counts below 1; EndpointError if a server does not start.
    """
    s = run.settings
    for name in ("streams", "batch", "lanes"):
        checks.count(getattr(s, name), name)
    non_negative_int(s.seed, "seed")
    return run_in_thread(_Campaign(run).run())


class _Campaign:
    """All streams of one run."""

    def __init__(self, run: Run) -> None:
        self.taken, self.settings = run, run.settings
        table = traces.table("prompts")
        self.prompts = table[table["tokens"] <= 30]["prompt"].tolist()
        self.lanes: list[Lane] = []
        self._reported: list[str] = []

    async def run(self) -> Tables:
        s, rows, violations = self.settings, list[Any](), list[Any]()
        firsts = range(0, s.streams, s.batch)
        self.taken.expect(len(firsts), "batch")
        loop = asyncio.get_running_loop()
        loop.set_task_factory(tagged)
        loop.set_exception_handler(lambda _, context: self._reported.append(str(context.get("exception", context))))
        self._known_children = _children()
        try:
            for _ in range(min(s.lanes, s.batch)):
                self.lanes.append(Lane())
                await self.lanes[-1].open()
            self._known_threads = self._threads()
            for first in firsts:
                numbers = range(first, min(first + s.batch, s.streams))
                done = await self.taken.piece(f"streams {first}", partial(self._batch, numbers), timed=False)
                rows += done["streams"]
                violations += done["violations"]
        finally:
            await asyncio.gather(*(lane.close() for lane in self.lanes))
        streams = pd.DataFrame(rows).sort_values("stream", ignore_index=True)
        return {"streams": streams, "violations": pd.DataFrame(violations, columns=VIOLATIONS)}

    async def _batch(self, numbers: Iterable[int]) -> dict[str, Any]:
        """Rows of a batch; when it has ended nothing is left but what the lanes need."""
        waiting, rows, violations = list(numbers)[::-1], list[Any](), list[Any]()
        first = waiting[-1]
        self._reported.clear()

        async def work(lane: Lane) -> None:
            while waiting:
                one = case(waiting.pop(), self.settings.seed, self.prompts)
                evidence = await lane.run(one)
                wrong = broken(evidence)
                rows.append(_row(one, evidence) | {"broken": len(wrong)})
                violations.extend(_violation(one, evidence, what) for what in wrong)

        await asyncio.gather(*(work(lane) for lane in self.lanes))
        for what in await self._left():
            about = {"stream": first, "kind": "batch", "promise": "running", "what": what, "record": ""}
            violations.append(about)
            next(row for row in rows if row["stream"] == first)["broken"] += 1
        return {"streams": rows, "violations": violations}

    async def _left(self) -> list[str]:
        """What the batch has left: threads, processes, tasks, errors that nobody has retrieved."""
        await asyncio.gather(*(lane.ready() for lane in self.lanes))
        gc.collect()  # an error that nobody retrieves is reported when its task goes
        left = [f"thread {name}" for name in self._threads() - self._known_threads]
        servers = {lane.local.pid for lane in self.lanes if lane.local}
        left += [f"process {pid}" for pid in _children() - servers - self._known_children]
        left += [f"task {task}" for task in asyncio.all_tasks() if owner_of(task) is not None]
        return left + [f"not retrieved: {one}" for one in self._reported]

    @staticmethod
    def _threads() -> set[str]:
        """Threads, but for those that the event loop keeps for blocking calls."""
        return {f"{one.name} {one.ident}" for one in threading.enumerate() if not one.name.startswith(POOL)}


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def _violation(one: Case, evidence: Evidence, what: str) -> dict[str, Any]:
    promise, _, detail = what.partition(": ")
    record = evidence.record.to_dict() | {"case": vars(one) | {"faults": [vars(fault) for fault in one.faults]}}
    record["exchanges"] = [
        {"outcome": log.outcome, "status": log.status, "events": len(log.events), "predicted": log.predicted}
        for log in evidence.exchanges
    ]
    text = json.dumps(record, default=str)
    return {"stream": one.number, "kind": one.kind, "promise": promise, "what": detail, "record": text}


def _outcome(evidence: Evidence) -> str:
    """What became of a stream, in the words of the figure."""
    record = evidence.record
    if evidence.left:
        return "reader left"
    if not record.complete:
        return "ended with an error"
    if any(one.reason not in (None, LATE) for one in record.handovers) or record.failures:
        return "complete, after a failure"
    return "complete, migrated" if record.handovers else "complete, from one endpoint"


def _row(one: Case, evidence: Evidence) -> dict[str, Any]:
    """The row of a stream."""
    record, made = evidence.record, generated(evidence)
    row: dict[str, Any] = {"stream": one.number, "kind": one.kind, "moves": one.moves, "starts": one.starts}
    row |= {
        "faults": "; ".join(f"{fault.kind} {fault.variant}".strip() for fault in one.faults),
        "struck": sum(fault.struck for fault in one.faults),
        "outcome": _outcome(evidence),
        "tokens": len(record.tokens),
        "migrations": sum(one.reason is None for one in record.handovers),
        "recalls": sum(one.reason == LATE for one in record.handovers),
        "failovers": sum(one.reason not in (None, LATE) for one in record.handovers),
        "failures": "; ".join(type(failure).__name__ for failure in record.failures),
        "estimated": record.prefill[End.SERVER] != prefilled(evidence, End.SERVER),
    }
    for end in End:
        name = end.name.lower()
        row |= {f"{name}_prefill": record.prefill[end], f"{name}_decode": record.decode[end]}
        row |= dict(zip((f"{name}_fewest", f"{name}_most"), bounds(evidence, made, end), strict=True))
        row[f"{name}_counted"] = sum(one.tokens for one in made if one.end is end)
        row[f"{name}_unconfirmed"] = record.unconfirmed[end]
    return row
