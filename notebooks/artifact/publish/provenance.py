"""Where an exhibit comes from: notebook, parameters, data, package versions and, if measured, whose machine and when.

Nothing in it is of the machine that rendered it, so that two machines write the same bytes.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from artifact.data.fetch import REGISTRY
from artifact.errors import ArtifactError
from artifact.files import DATA, ROOT
from disco_core.errors import InputError

Kind = Literal["simulated", "computed", "measured"]
# what numbers and pictures are made with
PACKAGES = (
    *("numpy", "scipy", "pandas", "scikit-learn", "statsmodels", "sacrebleu"),
    *("matplotlib", "seaborn", "pillow", "fonttools", "contourpy"),
)


def record(
    stem: str,
    numbers: bytes,
    *,
    texts: Mapping[str, str],
    kind: Kind,
    source: str,
    parameters: Mapping[str, Any],
    data: Iterable[str | Path] | None = None,
    measured: str | Path | None = None,
) -> dict[str, Any]:
    """The provenance of one exhibit, ready for json; its notebook is the one the stem starts with.

    numbers    the exhibit's csv, by whose sha256 it is cited
    texts      its title, caption and interpretation
    data       committed files the numbers come from; by default the tables of `data/`, and with a public source the
               list of pinned files
    measured   the folder of the measurement: its manifest says on which machine and when

    ArtifactError where a file cannot be read, InputError for parameters that are no plain values.
    """
    book = notebook(stem)
    files = _tables(source) if data is None else [ROOT / one for one in data]
    found: dict[str, Any] = {
        "stem": stem,
        "kind": kind,
        **texts,
        "source": source,
        "notebook": book.relative_to(ROOT).as_posix() if book.exists() else None,
        "parameters": {name: _plain(value) for name, value in sorted(parameters.items())},
        "data": {_portable(path): _sha256(path) for path in sorted(files)},
        "digest": f"sha256:{hashlib.sha256(numbers).hexdigest()}",
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }
    try:
        json.dumps(found["parameters"])
    except TypeError as error:
        raise InputError(f"parameters must be plain values: {error}") from None
    if kind == "measured":
        if measured is None:
            raise InputError(f"exhibit {stem} is measured, so it needs the folder of its measurement")
        folder = ROOT / measured
        manifest = _manifest(folder)
        found["data"] |= {_portable(folder / name): digest for name, digest in manifest["files"].items()}
        found |= {"machine": manifest["machine"], "date": manifest["date"]}
    return found


def changed(found: Mapping[str, Any]) -> list[str]:
    """The tables of `data/` that are not what they were when an exhibit was rendered."""
    tables = {name: ROOT / name for name in found["data"] if (ROOT / name).parent == DATA}
    return [name for name, path in tables.items() if not path.is_file() or _sha256(path) != found["data"][name]]


def notebook(stem: str) -> Path:
    """The notebook whose name begins an exhibit's stem, the longest of several; it need not exist."""
    words = stem.split("_")
    paths = [ROOT / "notebooks" / f"{'_'.join(words[:n])}.ipynb" for n in range(len(words), 0, -1)]
    return next((path for path in paths if path.exists()), paths[-1])


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return {name: found[name] for name in ("machine", "date", "files")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder} has no manifest of a measurement: {error}") from None


def _tables(source: str) -> list[Path]:
    tables = [path for path in DATA.glob("*.csv") if path.name != "claims.csv"]
    return [*tables, REGISTRY] if "public" in source else tables


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ArtifactError(f"cannot read {path} for the provenance: {error.strerror}") from None


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
