"""The code that measures, as one hash."""

import ast
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from artifact.files import DATA

# how measurements are stored and watched is not what is measured
_NOT = {f"artifact.measure.{name}" for name in ("busy", "code", "machine", "pieces", "store")} | {"disco_core"}


def code_digest(measure: Callable[..., Any], tables: Sequence[str] = ()) -> str:
    """sha256 of the code that measures, without comments and docstrings, and of the tables it asks.

    That is the function's module, and what it imports of the scheduler, the model and the rooms that measure and
    compute; not how measurements are stored.
    """
    seen: set[str] = set()
    queue = [measure.__module__]
    while queue:
        module = queue.pop()
        if module in seen or not _measures(module):
            continue
        seen.add(module)
        tree = ast.parse(Path(sys.modules[module].__file__ or "").read_bytes())
        queue += _imports(tree)
    total = hashlib.sha256()
    for module in sorted(seen):
        tree = ast.parse(Path(sys.modules[module].__file__ or "").read_bytes())
        total.update(f"{module}\n{ast.dump(_without_docstrings(tree))}\n".encode())
    for table in tables:
        total.update((DATA / f"{table}.csv").read_bytes())
    return total.hexdigest()


def _measures(module: str) -> bool:
    ours = module.startswith(("disco_core", "artifact.measure.", "artifact.analysis.")) or module in (
        "artifact.data.model",
        "artifact.data.traces",
    )
    return ours and module in sys.modules and module not in _NOT


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
