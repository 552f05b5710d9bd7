"""What a notebook's parameters cell declares, and values for it as they are given on a command line.

The cell is read here: Papermill's own reader gives up at a default with a `=` in it and at a type such as
`str | None`. A name that the notebook does not have is an error, where Papermill merely warns: a misspelt one would
render the default under another label.
"""

import ast
import contextlib
import difflib
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from artifact.errors import ArtifactError
from artifact.files import ROOT, relative_path
from disco_core.errors import InputError

NOTEBOOKS = ROOT / "notebooks"
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_TYPE = r"(?:None|[a-z]\w*)"


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
                raise ArtifactError(f"{relative_path(path)}: its parameters cell is not Python: {error}") from None
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


def pairs(texts: Sequence[str], option: str = "--set") -> dict[str, str]:
    """`name=value` texts as a dict; InputError for one without a name or a `=`."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"{option} takes name=value, not {text!r}")
        found[name] = value
    return found


def _book(path: Path) -> Any:
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises whatever it meets in a file that is no notebook
        raise ArtifactError(f"{relative_path(path)} is not a readable notebook: {one_line(error)}") from None


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


def one_line(text: object) -> str:
    """A text without its line breaks."""
    return " ".join(str(text).split())
