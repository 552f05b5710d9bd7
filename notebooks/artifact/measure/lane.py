"""A lane of the fault campaign: a server process, a proxy in front of it, a device model; one stream at a time."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import httpx

from artifact.data import model
from artifact.measure.cases import DEVICE, READER, Case, leaves
from artifact.measure.promises import Evidence, Job
from artifact.measure.proxy import Fault, Proxy
from disco_core.cost import End
from disco_core.endpoints import llama_cpp
from disco_core.endpoints.base import Generation, Prefix, Token
from disco_core.endpoints.llama_cpp import LlamaCppEndpoint
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from disco_core.endpoints.local_server import LocalServer
from disco_core.live.stream import Run, stream

CONTEXT, SLOTS = 256, 2
STALL_S, CONFIRM_S = 1.5, 2.0  # of a stream
DEADLINE_S, SERVER_CONFIRM_S = 4.0, 1.5  # of the server endpoint
HANGS_S, GRACE_S = 30.0, 4.0  # a stream that takes longer hangs; how soon a server must be idle after a fault
PACE = 60.0  # tokens per second of a reader
_STREAM: ContextVar[int | None] = ContextVar("stream", default=None)
_OWNERS: "WeakKeyDictionary[asyncio.Task[Any], int | None]" = WeakKeyDictionary()


def tagged(loop: asyncio.AbstractEventLoop, work: Any, **given: Any) -> "asyncio.Task[Any]":
    """A task factory that notes for which stream a task was created."""
    task = asyncio.Task(work, loop=loop, **given)
    _OWNERS[task] = _STREAM.get()
    return task


def owner_of(task: "asyncio.Task[Any]") -> int | None:
    """The stream for which a task was created; None for others."""
    return _OWNERS.get(task)


class _Server(LlamaServerEndpoint):
    """The endpoint, which notes what it is asked to continue."""

    prefixes: list[Prefix]

    def generate(self, prefix: Prefix) -> Generation:
        self.prefixes.append(prefix)
        return super().generate(prefix)


class _Device(LlamaCppEndpoint):
    """The endpoint, whose model notes what it is given and what it samples, and raises an error if it is to."""

    _last: llama_cpp.Job | None = None

    def __init__(self) -> None:
        self.prefixes, self.jobs, self.breaks_at = list[Prefix](), list[Job](), -1
        self.broke = False
        super().__init__(model.smollm2_path(), n_ctx=CONTEXT, name="device", temperature=1.0)

    def generate(self, prefix: Prefix) -> Generation:
        self.prefixes.append(prefix)
        return super().generate(prefix)

    def works(self) -> bool:
        """Whether a generation waits, or the last that began still runs."""
        return bool(self._open) or (self._last is not None and not self._last.run.done())

    def _model(self, job: llama_cpp.Job) -> Any:
        self._last = job
        return super()._model(job)

    def _vocabulary(self) -> Any:
        llama = super()._vocabulary()
        generate = llama.generate

        def noted(ids: list[int], **given: Any) -> Iterator[int]:
            job = Job([int(id) for id in ids])
            self.jobs.append(job)
            for id in generate(ids, **given):
                if len(job.sampled) == self.breaks_at:
                    self.broke = True
                    raise RuntimeError("it was to break here")
                job.sampled.append(int(id))
                yield id

        llama.generate = noted
        return llama


class Lane:
    """Open it, `run` streams one after the other, close it."""

    def __init__(self) -> None:
        self.proxy, self._dead = Proxy(), False
        self.local: LocalServer | None = None

    async def open(self) -> None:
        """Start the server, the proxy and the device."""
        await self.proxy.start()
        self._http = httpx.AsyncClient(timeout=2.0, verify=False, trust_env=False)
        await self.ready()
        options: dict[str, Any] = {"name": "server", "deadline_s": DEADLINE_S, "confirm_s": SERVER_CONFIRM_S}
        self.server = await asyncio.to_thread(_Server, self.proxy.url, temperature=1.0, **options)
        self.device = await asyncio.to_thread(_Device)

    async def close(self) -> None:
        """Stop all three."""
        for what in ("server", "device"):
            if hasattr(self, what):
                await getattr(self, what).__aexit__(None, None, None)
        await self.proxy.close()
        await self._http.aclose()
        if self.local is not None:
            await asyncio.to_thread(self.local.close)

    async def ready(self) -> None:
        """Return when there is a server that answers; another one is started if it was killed."""
        if self.local is None or self._dead:
            if self.local is not None:
                await asyncio.to_thread(self.local.close)
            self.local = await asyncio.to_thread(LocalServer, model.smollm2_path(), slots=SLOTS, n_ctx=CONTEXT)
            parts = urlsplit(self.local.url)
            self.proxy.upstream, self._dead = (str(parts.hostname), int(parts.port or 0)), False

    async def run(self, case: Case) -> Evidence:
        """One stream with its faults; what is known of it afterwards."""
        await self._begin(case)
        confirmed, estimated = self.device.confirmed, self.server.estimated
        answer, received = self._stream(case), list[Token]()
        reading = asyncio.create_task(self._read(case, answer, received))
        strikes = [asyncio.create_task(self._strike(fault, answer, reading)) for fault in case.faults]
        done, _ = await asyncio.wait([reading], timeout=HANGS_S)
        running = self._running(case, answer) if done else [f"the stream after {HANGS_S:g} s"]
        running += await self._slots_at_once(answer, case.faults)
        for task in [*strikes, *([] if done else [reading])]:
            task.cancel()
        await asyncio.wait([*strikes, reading])
        running += await self._left()
        raised, left = _result(reading, case)
        for fault in case.faults:
            fault.struck |= fault.kind == DEVICE and self.device.broke
        return Evidence(
            record=answer.record,
            prompt=list(self.device._tokenize(case.prompt, True)),
            max_tokens=case.max_tokens,
            received=received,
            raised=raised,
            left=left,
            prefixes={End.SERVER: self.server.prefixes, End.DEVICE: self.device.prefixes},
            exchanges=self.proxy.exchanges,
            jobs=self.device.jobs,
            confirmed=self.device.confirmed - confirmed,
            estimated=self.server.estimated > estimated or any("estimated" in one for one in answer.record.warnings),
            prefills=case.moves != "stays" and case.finish_loser_prefill,
            running=running,
        )

    async def _begin(self, case: Case) -> None:
        """Begin the logs of a stream, with a server that answers and a device that breaks when it is to."""
        await self.ready()
        self.proxy.clear()
        self.server._mute_until = 0.0  # so that it forgets the failures of the stream before
        self.server.prefixes, self.device.prefixes, self.device.jobs = [], [], []
        self.device.breaks_at = -1 if case.breaks_at is None else case.breaks_at
        self.device.continues, self.device.broke = case.continues, False

    def _stream(self, case: Case) -> Run:
        return stream(
            case.prompt,
            plan=case.plan,
            server=self.server,
            device=self.device,
            rule=case.rule,
            max_tokens=case.max_tokens,
            reading_rate=PACE,
            wait=case.wait,
            stall_s=STALL_S,
            confirm_s=CONFIRM_S,
            first_token_s=case.first_token_s,
            seed=case.seed,
        )

    async def _read(self, case: Case, answer: Run, received: list[Any]) -> None:
        """The reader: to the end, or until it leaves."""
        _STREAM.set(case.number)
        leaving = leaves(case.faults)
        breaks = leaving is not None and leaving.variant in ("break", "walk away")
        async with AsyncExitStack() as stack:
            if leaving is None or leaving.variant != "walk away":
                await stack.enter_async_context(answer)
            async for token in answer:
                received.append(token)
                if leaving and breaks and len(received) > leaving.share * case.max_tokens:
                    leaving.struck = True
                    break
        await answer.aclose()  # a reader who walks away does not wait; the check does

    async def _strike(self, fault: Fault, answer: Run, reading: "asyncio.Task[None]") -> None:
        """Wait for a fault's moment, and let it strike."""
        if fault.after_events is not None:
            await self.proxy.reached(fault.after_events)
        await asyncio.sleep(fault.after_s)
        pid = self.local.pid if self.local else 0
        if fault.kind == "SIGKILL":
            os.kill(pid, signal.SIGKILL)
            fault.struck = self._dead = True
        elif fault.kind == "SIGSTOP" and not self._dead:
            os.kill(pid, signal.SIGSTOP)
            fault.struck = True
            try:
                await asyncio.sleep(fault.lasts_s)
            finally:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        elif fault.kind == "cut" and fault.variant == "at once" and self.proxy.cut():
            fault.struck = True
        elif fault.kind == READER and fault.variant == "close":
            fault.struck = True
            await answer.aclose()
        elif fault.kind == READER and fault.variant == "cancel":
            fault.struck = reading.cancel()
        elif fault.kind not in (READER, DEVICE, "SIGSTOP"):
            self.proxy.armed.append(fault)

    def _running(self, case: Case, answer: Run) -> list[str]:
        """What must have stopped by the time the stream has ended."""
        found = [f"task {task}" for task in asyncio.all_tasks() if owner_of(task) == case.number and not task.done()]
        if not answer.record.unconfirmed[End.DEVICE] and self.device.works():
            found.append("the device")
        return found

    async def _slots_at_once(self, answer: Run, faults: tuple[Fault, ...]) -> list[str]:
        """A server that has confirmed all cancels, and was not disturbed, is idle at the stream's end."""
        undisturbed = not any(fault.struck and fault.kind not in (READER, DEVICE) for fault in faults)
        record = answer.record
        if undisturbed and not record.failures and not record.unconfirmed[End.SERVER] and await self._busy():
            return ["the server at the stream's end, which it was confirmed to have stopped"]
        return []

    async def _left(self) -> list[str]:
        """What is still running once the faults are over and some time has passed."""
        self.proxy.armed = []
        until = asyncio.get_running_loop().time() + GRACE_S
        while self.proxy.running or (not self._dead and await self._busy()):
            if asyncio.get_running_loop().time() > until:
                return [f"{self.proxy.running} requests, or the server, {GRACE_S:g} s after the stream"]
            await asyncio.sleep(0.02)
        return []

    async def _busy(self) -> bool:
        assert self.local
        try:
            slots = (await self._http.get(f"{self.local.url}/slots")).json()
        except httpx.HTTPError:
            return True
        return any(slot["is_processing"] for slot in slots)


def _result(reading: "asyncio.Task[None]", case: Case) -> tuple[BaseException | None, bool]:
    """What the iteration raised, and whether the reader left early."""
    leaving = leaves(case.faults)
    left = leaving is not None and leaving.struck
    if reading.cancelled():
        return None, True
    return reading.exception(), left
