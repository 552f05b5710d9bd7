"""Run one notebook with Papermill: known parameters only, and an executed copy that is whole or absent.

    python -m artifact.publish.run dispatch --set requests=1000

Papermill merely warns about a parameter the notebook does not have; here that is an error, because a misspelt
name would render the default under another label.
"""

import argparse
import ast
import contextlib
import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifact.commands import command
from artifact.errors import ArtifactError
from artifact.files import BUILD, ROOT
from artifact.publish import progress
from disco_core.errors import InputError

NOTEBOOKS = ROOT / "notebooks"
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_ELSEWHERE = ("out", "measurements")  # parameters that no notebook takes longer for


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
        try:
            return _READERS.get(self.type, _read_literal)(given)
        except (ValueError, TypeError, SyntaxError):
            raise InputError(f"parameter {self.name} takes a value of type {self.type}, not {given!r}") from None


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
    import papermill

    path = find(notebook)
    try:
        found = papermill.inspect_notebook(str(path))
    except Exception as error:  # nbformat and papermill raise whatever they meet in a file that is no notebook
        raise ArtifactError(f"{_shown(path)} is not a readable notebook: {_one_line(error)}") from None
    return {name: _parameter(entry) for name, entry in found.items()}


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


def run(notebook: str | Path, out: str | Path = BUILD / "by-hand", /, **given: Any) -> Path:
    """Execute a notebook from the project root and return the path of the executed copy, `out/<stem>.ipynb`.

    A copy that failed is kept as `out/<stem>.failed.ipynb`, so that the good one is never a part.
    Raises InputError for parameters the notebook does not take, ArtifactError where a cell fails.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    source, folder = find(notebook), ROOT / out
    values = check(source, given)
    done, failed = folder / source.name, folder / f"{source.stem}.failed.ipynb"
    running = folder / f".{source.stem}.running.ipynb"
    try:
        _prepare_environment()
        folder.mkdir(parents=True, exist_ok=True)
        with progress.shown(source.stem, _code_cells(source), _size(source, values)) as told:
            papermill.execute_notebook(
                str(source),
                str(running),
                values,
                kernel_name="python3",
                cwd=str(ROOT),
                progress_bar=False,
                on_cell_start=told.on_cell,
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
        raise ArtifactError(f"cannot write {_shown(done)}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            running.unlink()
    return done


def _code_cells(source: Path) -> int:
    import nbformat

    return sum(cell.cell_type == "code" for cell in nbformat.read(source, as_version=4).cells)


def _size(source: Path, values: Mapping[str, Any]) -> str:
    """A notebook, its size and what else it is not given by default, such as `dispatch quick=True`."""
    usual = {name: one.default.strip("'\"") for name, one in parameters(source).items()}
    told = {k: v for k, v in sorted(values.items()) if k == "quick" or str(v) != usual[k]}
    said = [f"{k}={v}" for k, v in told.items() if k not in _ELSEWHERE]
    return " ".join([source.stem, *said])


def _prepare_environment() -> None:
    # the kernel inherits these: no window, this environment's kernel, and none of the user's start-up files
    os.environ["MPLBACKEND"] = "agg"
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    (BUILD / "ipython").mkdir(parents=True, exist_ok=True)  # without its parent, IPython warns and goes elsewhere
    os.environ["IPYTHONDIR"] = str(BUILD / "ipython")
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"


def _kernel_config() -> Any:
    # without it newer kernels warn, at every start, that what they send to this process is in plain text
    import zmq
    from traitlets.config import Config

    return Config(KernelManager={"transport_encryption": "auto"} if zmq.has("curve") else {})


def _failure(source: Path, error: Any, copy: Path) -> str:
    lines = [line.strip() for line in error.source.splitlines()]
    first = next((line for line in lines if line and not line.startswith("#")), "")
    problem = f"{error.ename}: {_one_line(error.evalue)}".removesuffix(": ")
    return f"{source.name}: {problem}\n  in the cell `{first}`; the run so far is in {_shown(copy)}"


def _parameter(entry: Mapping[str, Any]) -> Parameter:
    help_text = str(entry["help"]).strip()
    declared = str(entry["inferred_type_name"])
    if declared == "None":  # no annotation: the comment starts with the type, or the default shows it
        words = re.match(r"([a-z]\w*)\s*:\s*(.*)", help_text)
        if words:
            declared, help_text = words.groups()
        else:
            declared = type(_read_literal(str(entry["default"]))).__name__
    return Parameter(str(entry["name"]), declared, str(entry["default"]), help_text)


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


_READERS: dict[str, Callable[[Any], Any]] = {
    "bool": _read_bool,
    "int": _read_int,
    "float": _read_float,
    "str": _read_str,
    "list": _read_sequence,
    "tuple": _read_sequence,
}


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"--set takes name=value, not {text!r}")
        pairs[name] = value
    return pairs


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m artifact.publish.run",
        description="Run a notebook of this project, from the project's root, and keep the executed copy.",
        epilog="example: python -m artifact.publish.run dispatch --set quick=true out=build/try",
    )
    options.add_argument("notebook", help="a stem such as dispatch, or the path of a notebook")
    options.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="parameters of the notebook",
    )
    options.add_argument(
        "--out",
        default=BUILD / "by-hand",
        type=Path,
        help="folder of the executed copy (default: build/by-hand)",
    )
    options.add_argument("--params", action="store_true", help="list the notebook's parameters and stop")
    return options


@command("run the notebook again; what its sweeps had finished is kept")
def main(argv: list[str] | None = None) -> int:
    """The command line: 0 if the notebook ran, 1 if it failed, 2 for a wrong parameter, 130 on Ctrl-C."""
    given = _options().parse_args(argv)
    if given.params:
        for parameter in parameters(given.notebook).values():
            print(f"{parameter.name} = {parameter.default}  # {parameter.type}: {parameter.help}")
        return 0
    print(_shown(run(given.notebook, given.out, **_pairs(given.set))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
