"""A measurement in progress for tests: the settings of a measuring notebook, changed, and a journal of its own."""

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from artifact.measure.pieces import Run
from artifact.publish.parameters import parameters


def defaults(notebook: str) -> dict[str, Any]:
    """The settings a measuring notebook has by default."""
    return {name: ast.literal_eval(one.default) for name, one in parameters(notebook).items()}


def a_run(folder: Path, name: str, *, cores: int = 0, **changed: Any) -> Run:
    """A run of `measure_<name>` with some settings changed."""
    return Run(name, SimpleNamespace(**defaults(f"measure_{name}") | changed), folder / "pieces.jsonl", cores)
