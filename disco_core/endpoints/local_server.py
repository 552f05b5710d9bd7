"""A llama.cpp server on this machine: that of xllamacpp, in a child process that never outlives its parent."""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, Any

import httpx

from disco_core import checks
from disco_core.endpoints.base import non_negative_int
from disco_core.endpoints.failures import redact
from disco_core.endpoints.http import secret
from disco_core.endpoints.llama_cpp import BATCH, model_file
from disco_core.errors import InputError, RefusedError, StalledError

HOST = "127.0.0.1"


class LocalServer(AbstractContextManager["LocalServer"]):
    """The constructor starts it and returns once it is healthy; `url` is its address. Close it, or use `with`.

    model_path   GGUF file
    slots        requests it decodes together (continuous batching)
    n_threads    threads that compute, whatever the number of slots
    n_ctx        tokens of context of each slot
    port         0 takes a free one; RefusedError for one that is in use
    api_key      a key it then requires; it is passed through a pipe, never on a command line
    deadline_s   seconds it may take to start

    The process has its own session, so that Ctrl-C reaches only the parent, and it ends as soon as the pipe to the
    parent breaks: also when the parent crashes or is killed.
    """

    def __init__(
        self,
        model_path: Path | str,
        *,
        slots: int = 4,
        n_threads: int = 1,
        n_ctx: int = 2048,
        port: int = 0,
        api_key: str | None = None,
        name: str = "local server",
        deadline_s: float = 60.0,
    ) -> None:
        self.name, self._key = name, secret(api_key, name)
        if non_negative_int(port, "port") > 65535:
            raise InputError(f"port must be at most 65535, got {port}")
        settings = {
            "model": str(model_file(name, model_path).resolve()),
            "port": _claimed(name, port) if port else 0,
            "slots": checks.count(slots, "slots"),
            "n_threads": checks.count(n_threads, "n_threads"),
            "n_ctx": checks.count(n_ctx, "n_ctx"),
            "api_key": self._key,
        }
        deadline = time.monotonic() + checks.positive(deadline_s, "deadline_s")
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # its stderr, for an error message
        self._process = _start(self._stderr)
        atexit.register(self.close)
        try:
            self.url = self._settle(settings, deadline)
        except BaseException:  # an interrupt too
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Process id, of its session too."""
        return self._process.pid

    def close(self) -> None:
        """Kill the process and its children, and wait until it has ended. Safe to call again."""
        atexit.unregister(self.close)
        with self._process as process:  # which is waited for, and its pipes are closed
            if process.poll() is None:  # it has no state to save
                os.killpg(process.pid, signal.SIGKILL)
        self._stderr.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self, 'url', 'not started')!r}, pid={self.pid})"

    def _settle(self, settings: dict[str, Any], deadline: float) -> str:
        """The address of the server, once it is healthy."""
        process, url = self._process, ""
        assert process.stdin
        assert process.stdout
        os.set_blocking(process.stdout.fileno(), False)
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(settings).encode() + b"\n")
        while (left := deadline - time.monotonic()) > 0:
            url = url or (process.stdout.read(100) or b"").decode().strip()
            if url:
                with suppress(httpx.HTTPError):
                    health = httpx.get(f"{url}/health", timeout=min(2.0, left), verify=False, trust_env=False)
                    if health.status_code == 200:
                        return url
            if process.poll() is not None:
                self._stderr.seek(0)
                lines = self._stderr.read().decode(errors="replace").strip().splitlines() or ["without a message"]
                raise RefusedError(self.name, f"it did not start: {redact(self._key, lines[-1])}")
            time.sleep(0.05)
        raise StalledError(self.name, f"it {'was not healthy' if url else 'did not start'} within its deadline")


def _start(stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    """This module in a new interpreter."""
    path = filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )


def _claimed(name: str, port: int) -> int:
    """The port, if it is free; RefusedError otherwise."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise RefusedError(name, f"port {port} of {HOST} is not free: {error.strerror}") from None
    return port


def _serve() -> None:
    """In the child: read the settings, write the address, serve until the pipe to the parent breaks."""
    parent, settings = os.getppid(), json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    out = os.dup(1)
    os.dup2(2, 1)  # so that the address is all that the parent reads, whatever a library prints
    try:
        import xllamacpp
    except ImportError:
        sys.exit("a local server needs the package xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.hostnames, params.port = [HOST], settings["port"]
    params.n_parallel, params.n_ctx = settings["slots"], settings["slots"] * settings["n_ctx"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["n_threads"]
    params.n_batch = params.n_ubatch = BATCH
    params.warmup, params.verbosity, params.ui, params.endpoint_slots = True, -1, False, True
    if settings["api_key"]:
        params.api_keys = [settings["api_key"]]
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        sys.exit(f"{Path(settings['model']).name} on port {settings['port']}: {error}")
    os.write(out, server.listening_address.encode() + b"\n")
    sys.stdin.buffer.read()
    os._exit(0)


def _leave_with(parent: int) -> None:
    """Exit with the parent, even if another process, such as a forked worker, still holds the pipe open."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


if __name__ == "__main__":
    _serve()
