"""Run one notebook with Papermill: known parameters only, and an executed copy that is whole or absent.

    python -m artifact run dispatch --set requests=1000

`render` does so for a folder of exhibits of which nothing earlier is to be left.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from artifact.errors import ArtifactError
from artifact.files import BUILD, ROOT, locked, relative_path, write_atomic
from artifact.publish.parameters import check, find, one_line
from artifact.publish.provenance import notebook as notebook_of
from disco_core.errors import InputError

_LOG_S = 60.0  # in a log, a bar is shown this often


def run(notebook: str | Path, out: str | Path = BUILD / "by-hand", /, **given: Any) -> Path:
    """Execute a notebook from the project root and return the path of the executed copy, `out/<stem>.ipynb`.

    A copy that failed is kept as `out/<stem>.failed.ipynb`, so that the good one is never a part.
    Raises InputError for parameters the notebook does not take, ArtifactError where a cell fails or the same
    notebook is being run into the same folder.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    source, folder = find(notebook), ROOT / out
    values = check(source, given)
    done, failed = folder / source.name, folder / f"{source.stem}.failed.ipynb"
    running = folder / f".{source.stem}.running.ipynb"
    with locked(running, f"{source.stem} is being run into {relative_path(folder)} by another command; wait for it"):
        try:
            _prepare_environment()
            with _shown_progress(source) as (bar, kernel):
                papermill.execute_notebook(
                    str(source),
                    str(running),
                    values,
                    kernel_name="python3",
                    cwd=str(ROOT),
                    progress_bar=bar,
                    stderr_file=kernel,
                    config=_kernel_config(),
                    shutdown_kernel="immediate",  # asked politely within a cell, it prints a traceback of its own
                )
            os.replace(running, done)
            failed.unlink(missing_ok=True)
        except papermill.PapermillExecutionError as error:
            os.replace(running, failed)
            raise ArtifactError(_failure(source, error, failed)) from None
        except DeadKernelError:
            raise ArtifactError(f"{source.name}: the kernel died; most often the machine is out of memory") from None
        except OSError as error:
            raise ArtifactError(f"cannot write {relative_path(done)}: {error.strerror or error}") from None
        finally:
            with contextlib.suppress(OSError):
                running.unlink()
    return done


def render(notebook: str | Path, out: str | Path, /, **given: Any) -> Path:
    """`run` without anything left of what an earlier run put in the folder of exhibits, `given["out"]`.

    Beside the executed copy a list says what the run made, by which `sweep` sees that it is not there any more.
    InputError for a folder of exhibits outside `build/`, whose files are not this function's to remove.
    """
    source, exhibits = find(notebook), _below_build(given["out"]) if "out" in given else None
    for path in _made(exhibits).get(source.stem, ()) if exhibits else ():
        path.unlink(missing_ok=True)
    done = run(source, out, **given)
    made = _digests(exhibits, source.stem) if exhibits else {}
    write_atomic(_list_of(done), json.dumps(made, indent=1) + "\n")
    return done


def sweep(exhibits: str | Path, executed: Sequence[str | Path]) -> None:
    """Take away what a rendering would not make, so that the next one does: exhibits of other notebooks than these,
    and the executed copies of those whose exhibits are not as they left them, lost or changed by hand.
    """
    folder, copies = _below_build(exhibits), {Path(path).stem: ROOT / path for path in executed}
    for stem, paths in _made(folder).items():
        for path in paths if stem not in copies else ():
            path.unlink(missing_ok=True)
    for stem, copy in copies.items():
        try:
            as_made = json.loads(_list_of(copy).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            as_made = None
        if as_made != _digests(folder, stem):
            copy.unlink(missing_ok=True)


def _below_build(exhibits: str | Path) -> Path:
    if not (ROOT / exhibits).resolve().is_relative_to(BUILD.resolve()):
        raise InputError(f"out is {str(exhibits)!r}; exhibits are taken away below build/ only")
    return ROOT / exhibits


def _made(exhibits: Path) -> dict[str, list[Path]]:
    """The files of a folder of exhibits by the notebook that their names begin with; not the gallery."""
    found: dict[str, list[Path]] = {}
    for path in sorted(exhibits.glob("[!.]*.*")):
        if path.is_file() and path.name != "README.md":
            found.setdefault(notebook_of(path.name.partition(".")[0]).stem, []).append(path)
    return found


def _digests(exhibits: Path, stem: str) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in _made(exhibits).get(stem, ())}


def _list_of(copy: Path) -> Path:
    return copy.with_suffix(".exhibits.json")


class _KernelStderr:
    """What a kernel writes to stderr as it comes: its lines, and the last state of its progress bars.

    On a terminal a bar has the line below which nothing is; in a log it is a line a minute.
    """

    def __init__(self, stem: str) -> None:
        self.stem, self.terminal = stem, sys.stderr.isatty()
        self._rest, self._told = "", time.monotonic()

    def write(self, text: str) -> int:
        """Take the next piece of the kernel's stderr."""
        *lines, self._rest = (self._rest + text.replace("\x1b[A", "")).split("\n")
        for line in lines:
            self._show(line, ended=True)
        self._show(self._rest, ended=False)
        return len(text)

    def flush(self) -> None:
        """Everything is written at once."""

    def _show(self, line: str, *, ended: bool) -> None:
        now = line.rstrip("\r ").rpartition("\r")[2].strip()
        if re.search(r"\d%\|", now):
            self._bar(now)
        elif now and ended:
            self._line(now)

    def _bar(self, now: str) -> None:
        if self.terminal:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            print(f"\r{f'{self.stem}: {now}'[: columns - 1]}\x1b[K", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._told > _LOG_S:
            self._told = time.monotonic()
            self._line(now)

    def _line(self, text: str) -> None:
        start = "\r\x1b[K" if self.terminal else ""
        print(f"{start}{self.stem}: {text}", file=sys.stderr, flush=True)


@contextmanager
def _shown_progress(source: Path) -> Iterator[tuple[Any, _KernelStderr]]:
    """Papermill's bar, and where the kernel's stderr goes; a line at the start (of a log) and one at the end."""
    kernel, began = _KernelStderr(source.stem), time.monotonic()
    bar = {"desc": source.stem, "leave": False, "dynamic_ncols": True, "disable": not kernel.terminal}
    if not kernel.terminal:
        print(f"{source.stem}: started", file=sys.stderr, flush=True)
    yield bar, kernel
    kernel._line(f"done in {time.monotonic() - began:.0f} s")


def _prepare_environment() -> None:
    # the kernel inherits these: no window, this environment's kernel, and none of the user's start-up files
    os.environ["MPLBACKEND"] = "agg"
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    (BUILD / "ipython").mkdir(parents=True, exist_ok=True)  # without its parent, IPython warns and goes elsewhere
    os.environ["IPYTHONDIR"] = str(BUILD / "ipython")
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of parameters that only its reader misses


def _kernel_config() -> Any:
    # without it newer kernels warn, at every start, that what they send to this process is in plain text
    import zmq
    from traitlets.config import Config

    return Config(KernelManager={"transport_encryption": "auto"} if zmq.has("curve") else {})


def _failure(source: Path, error: Any, copy: Path) -> str:
    lines = [line.strip() for line in error.source.splitlines()]
    first = next((line for line in lines if line and not line.startswith("#")), "")
    problem = f"{error.ename}: {one_line(error.evalue)}".removesuffix(": ")
    return f"{source.name}: {problem}\n  in the cell `{first}`; the run so far is in {relative_path(copy)}"
