"""The code that measures, as one hash."""

import ast
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from artifact.files import DATA

# how measurements are stored and monitored does not change what is measured
_EXCLUDED = {f"artifact.measure.{name}" for name in ("busy", "code", "machine", "pieces", "store")} | {"disco_core"}


def code_digest(measure: Callable[..., Any], tables: Sequence[str] = ()) -> str:
    """sha256 of the code that measures, without comments and docstrings, and of the tables that it uses.

    The code is the function's module and its imports from disco_core, `measure`, `analysis`, `elastic`, `data.model`
    and `data.traces`; not the modules that store and monitor measurements.
    """
    trees: dict[str, ast.Module] = {}
    queue = [measure.__module__]
    while queue:
        module = queue.pop()
        if module not in trees and _measures(module):
            trees[module] = ast.parse(Path(sys.modules[module].__file__ or "").read_bytes())
            queue += _imports(trees[module])
    total = hashlib.sha256()
    for module in sorted(trees):
        total.update(f"{module}\n{ast.dump(_without_docstrings(trees[module]))}\n".encode())
    for table in tables:
        total.update((DATA / f"{table}.csv").read_bytes())
    return total.hexdigest()


def _measures(module: str) -> bool:
    folders = ("disco_core", "artifact.measure.", "artifact.analysis.", "artifact.elastic.")
    ours = module.startswith(folders) or module in ("artifact.data.model", "artifact.data.traces")
    return ours and module in sys.modules and module not in _EXCLUDED


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{one.name}" for one in node.names)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return tree
