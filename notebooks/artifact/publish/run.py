"""Run one notebook with Papermill: known parameters only, and an executed copy that is whole or absent.

    python -m artifact run dispatch --set requests=1000

Papermill merely warns about a parameter the notebook does not have; here that is an error, because a misspelt
name would render the default under another label. The parameters cell is read here too: Papermill's own reader
gives up at a default with a `=` in it and at a type such as `str | None`.
"""

import ast
import contextlib
import difflib
import hashlib
import json
import logging
import os
import re
import sys
import time
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from artifact.errors import ArtifactError
from artifact.files import BUILD, ROOT, locked, shown, write_atomic
from artifact.publish.provenance import notebook as notebook_of
from disco_core.errors import InputError

NOTEBOOKS = ROOT / "notebooks"
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_TYPE = r"(?:None|[a-z]\w*)"
_LOG_S = 60.0  # in a log, a bar is shown this often


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell: `name = default  # type: meaning`."""

    name: str
    type: str
    default: str
    help: str

    def __str__(self) -> str:
        return f"{self.name} ({self.type}{', ' + self.help if self.help else ''})"

    def value(self, given: Any) -> Any:
        """The value as the declared type; text is read as that type, anything else must already be it."""
        for one in sorted(self.type.replace(" ", "").split("|"), key="None".__ne__):
            with contextlib.suppress(ValueError, TypeError, SyntaxError):
                return _READERS.get(one, _read_literal)(given)
        raise InputError(f"parameter {self.name} takes a value of type {self.type}, not {given!r}")


def find(notebook: str | Path) -> Path:
    """The path of a notebook given as a path or as a bare stem of `notebooks/`.

    Raises InputError, naming the notebooks there are.
    """
    for path in (Path(notebook), ROOT / notebook, NOTEBOOKS / f"{notebook}.ipynb"):
        if path.is_file():
            return path.resolve()
    known = ", ".join(sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))) or "none yet"
    raise InputError(f"no notebook {str(notebook)!r}; notebooks/ has: {known}")


def parameters(notebook: str | Path) -> dict[str, Parameter]:
    """What the notebook's parameters cell declares, in its order; empty if it has no such cell."""
    path = find(notebook)
    for cell in _book(path).cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            try:
                return {one.name: one for one in _declared(cell.source)}
            except (SyntaxError, tokenize.TokenError) as error:
                raise ArtifactError(f"{shown(path)}: its parameters cell is not Python: {error}") from None
    return {}


def check(notebook: str | Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given parameters as their declared types. Raises InputError for an unknown name or a wrong type."""
    known = parameters(notebook)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            listed = "; ".join(map(str, known.values())) or "no parameters"
            raise InputError(f"{find(notebook).name} has no parameter {name!r}{meant}; it has: {listed}")
    return {name: known[name].value(value) for name, value in given.items()}


def common(notebook: str | Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given parameters that the notebook has."""
    known = parameters(notebook)
    return {name: value for name, value in given.items() if name in known}


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
    with locked(running, f"{source.stem} is being run into {shown(folder)} by another command; wait for it"):
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
            raise ArtifactError(f"cannot write {shown(done)}: {error.strerror or error}") from None
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
    problem = f"{error.ename}: {_one_line(error.evalue)}".removesuffix(": ")
    return f"{source.name}: {problem}\n  in the cell `{first}`; the run so far is in {shown(copy)}"


def _book(path: Path) -> Any:
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises whatever it meets in a file that is no notebook
        raise ArtifactError(f"{shown(path)} is not a readable notebook: {_one_line(error)}") from None


def _declared(source: str) -> Iterator[Parameter]:
    """The parameters of a cell: `name = default` or `name: type = default`, the comment with `type: meaning`."""
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    comments = {one.start[0]: one.string.lstrip("# ") for one in tokens if one.type == tokenize.COMMENT}
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if not isinstance(targets[0], ast.Name) or value is None:
            continue
        meaning, kind = comments.get(node.end_lineno or node.lineno, "").strip(), ""
        if isinstance(node, ast.AnnAssign):
            kind = ast.unparse(node.annotation).strip("'\"")
        if said := re.match(rf"(?:type:\s*)?({_TYPE}(?:\s*\|\s*{_TYPE})*)\s*:\s*(.*)", meaning):
            kind, meaning = kind or said[1], said[2]
        default = ast.unparse(value) if value.lineno != value.end_lineno else ast.get_source_segment(source, value)
        yield Parameter(targets[0].id, kind or type(_read_literal(default)).__name__, default or "", meaning)


def _read_literal(given: Any) -> Any:
    return ast.literal_eval(given) if isinstance(given, str) else given


def _read_bool(given: Any) -> bool:
    if isinstance(given, str) and given.strip().lower() in _WORDS:
        return _WORDS[given.strip().lower()]
    if isinstance(given, bool):
        return given
    raise ValueError(given)


def _read_int(given: Any) -> int:
    if isinstance(given, bool) or (not isinstance(given, str) and int(given) != given):
        raise ValueError(given)
    return int(given)


def _read_float(given: Any) -> float:
    if isinstance(given, bool):
        raise ValueError(given)
    return float(given)


def _read_str(given: Any) -> str:
    if isinstance(given, str | Path):
        return str(given)
    raise ValueError(given)


def _read_sequence(given: Any) -> list[Any]:
    value = _read_literal(given)
    if not isinstance(value, list | tuple):
        raise ValueError(given)
    return list(value)


def _read_none(given: Any) -> None:
    if given not in (None, "None"):
        raise ValueError(given)


_READERS: dict[str, Callable[[Any], Any]] = {
    "None": _read_none,
    "bool": _read_bool,
    "int": _read_int,
    "float": _read_float,
    "str": _read_str,
    "list": _read_sequence,
    "tuple": _read_sequence,
}


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def pairs(texts: Sequence[str], option: str = "--set") -> dict[str, str]:
    """`name=value` texts as a dict; InputError for one without a name or a `=`."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"{option} takes name=value, not {text!r}")
        found[name] = value
    return found
