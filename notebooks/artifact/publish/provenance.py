"""Where an exhibit comes from: a digest of its sources, data and parameters, and, if measured, the machine.

A simulated exhibit carries no time, commit, machine or path, so that two runs write the same bytes.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from artifact.errors import ArtifactError
from artifact.files import DATA, FIGURES, ROOT
from disco_core.errors import InputError

Kind = Literal["simulated", "computed", "measured"]
_PACKAGES = ("numpy", "scipy", "pandas", "matplotlib", "seaborn")
# by the module that is loaded where it is used; seaborn loads the top of statsmodels only to see that it is there
_WHERE_USED = {"sklearn": "scikit-learn", "statsmodels.tsa": "statsmodels", "sacrebleu": "sacrebleu"}


def record(
    stem: str,
    *,
    caption: str,
    kind: Kind,
    source: str,
    parameters: Mapping[str, Any],
    data: Iterable[str | Path] | None = None,
    measured: str | Path | None = None,
) -> dict[str, Any]:
    """The provenance of one exhibit, ready for json; its notebook is the one the stem starts with.

    `data` are the files the numbers come from; by default every committed table, and with a public source the list
    of pinned files. `measured` is the file of what was measured here: the exhibit's date is its day.
    """
    notebook = _notebook(stem)
    files = _tables(source) if data is None else [ROOT / one for one in data]
    files = sorted({*files, *([ROOT / measured] if measured else [])})
    chosen = {name: _plain(value) for name, value in sorted(parameters.items())}
    used = [package for module, package in _WHERE_USED.items() if module in sys.modules]
    found = {
        "stem": stem,
        "kind": kind,
        "caption": caption,
        "source": source,
        "notebook": notebook.relative_to(ROOT).as_posix() if notebook.exists() else None,
        "parameters": chosen,
        "data": {_portable(path): _sha256(path) for path in files},
        "digest": digest(notebook, files, chosen),
        "packages": {name: metadata.version(name) for name in (*_PACKAGES, *used)},
    }
    if kind == "measured":
        found |= {"machine": machine(), "date": _date(ROOT / measured if measured else None)}
    return found


def digest(notebook: Path, files: Iterable[Path], parameters: Mapping[str, Any]) -> str:
    """sha256 over the notebook's code cells and parameters, the loaded modules of this package and the data files.

    Raises ArtifactError, naming the file, where one cannot be read.
    """
    total = hashlib.sha256()
    try:
        _add(total, "parameters", json.dumps(parameters, sort_keys=True).encode())
    except TypeError as error:
        raise InputError(f"parameters must be plain values: {error}") from None
    if notebook.exists():
        _add(total, notebook.name, _code(notebook))
    for path in sorted({*_modules(), *files}):
        try:
            _add(total, _portable(path), path.read_bytes())
        except OSError as error:
            raise ArtifactError(f"cannot read {path} for the provenance: {error.strerror}") from None
    return f"sha256:{total.hexdigest()}"


def changed(found: Mapping[str, Any]) -> list[str]:
    """The data files of an exhibit that are not what they were when it was rendered.

    What was measured or fetched may be gone, as it is in a fresh clone; what is committed may not.
    """
    paths = {name: ROOT / name for name in found["data"]}
    here = {name: path for name, path in paths.items() if path.is_file() or path.parent in (DATA, FIGURES)}
    return [name for name, path in here.items() if not path.is_file() or _sha256(path) != found["data"][name]]


def machine() -> dict[str, Any]:
    """This machine: CPU model, cores this process may use, memory in GiB, system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        memory = None
    return {
        "cpu": _cpu(),
        "cores": cores,
        "memory_gib": None if memory is None else round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _notebook(stem: str) -> Path:
    """The notebook whose name begins an exhibit's stem, the longest of several; it need not exist."""
    words = stem.split("_")
    paths = [ROOT / "notebooks" / f"{'_'.join(words[:n])}.ipynb" for n in range(len(words), 0, -1)]
    return next((path for path in paths if path.exists()), paths[-1])


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ArtifactError(f"cannot read {path} for the provenance: {error.strerror}") from None


def _cpu() -> str:
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if named:
            return named[1]
    except (OSError, subprocess.CalledProcessError):
        pass
    return platform.processor() or platform.machine()


def _date(measured: Path | None) -> str:
    # a figure drawn again from an earlier measurement keeps the day of the measurement
    if measured is None or not measured.exists():
        return _today()
    return datetime.fromtimestamp(measured.stat().st_mtime, UTC).date().isoformat()


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _tables(source: str) -> list[Path]:
    tables = [path for path in DATA.glob("*.csv") if path.name != "claims.csv"]
    return [*tables, Path(__file__).with_name("registry.txt")] if "public" in source else tables


def _modules() -> list[Path]:
    ours = [module for name, module in sys.modules.items() if name.split(".")[0] == "disco_core"]
    return [Path(module.__file__).resolve() for module in ours if module.__file__]


def _code(notebook: Path) -> bytes:
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{notebook} is not a readable notebook: {error}") from None
    return "\n\n".join(sources).encode()


def _add(total: "hashlib._Hash", name: str, content: bytes) -> None:
    total.update(f"{name}\n{len(content)}\n".encode())
    total.update(content)


def _plain(value: Any) -> Any:
    if isinstance(value, Path) or (isinstance(value, str) and os.path.isabs(value)):
        return _portable(Path(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.item() if hasattr(value, "item") else value


def _portable(path: Path) -> str:
    # a path of this machine says nothing to a reader, and would differ on the next
    if not path.is_absolute():
        return path.as_posix()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
