"""Measurements of this machine: taken in pieces, stored by a hash of what they depend on, verified when read.

`measured` returns a folder of csv files and a manifest. It measures only if no stored folder has the same settings,
code, model, server and machine, or if that one stayed disturbed; then only disturbed pieces, and those missing after
an interrupt, are measured. `read` returns the content of such a folder.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from artifact.data import model
from artifact.errors import ArtifactError
from artifact.files import BUILD, ROOT, locked, relative_path, write_together
from artifact.measure.code import code_digest
from artifact.measure.machine import machine
from artifact.measure.pieces import Run, Tables, plain

FORMAT = 1
STORED = BUILD / "stored"
TEXTS = {"text", "before", "after"}  # columns that are text even if they are empty or "NA"
_PACKAGES = ("llama-cpp-python", "xllamacpp", "numpy", model.SECOND_PACKAGE)


def measured(
    name: str,
    settings: Mapping[str, Any],
    measure: Callable[[Run], Tables],
    *,
    out: str | Path,
    server: Mapping[str, str] | None = None,
    cores: int = 2,
    tables: Sequence[str] = (),
) -> Path:
    """The folder `out` with the measurement `name` for these settings; measured now unless it is stored.

    measure   returns the tables of a `Run`; its module, and what it imports from this project, is the code hashed
    server    name and address of an external server
    cores     that the measured work uses; 0 if no time is measured
    tables    names of the tables of `data/` that the measurement uses
    ArtifactError if another run is measuring, or a file cannot be written.
    """
    about = {
        "format": FORMAT,
        "name": name,
        "settings": dict(settings),
        "code": code_digest(measure, tables),
        "model": {"name": model.NAME, "sha256": _sha256(model.smollm2_path())},
        "server": None if server is None else dict(server),
        "machine": machine(),
        "versions": _versions(),
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=plain).encode()).hexdigest()
    folder = STORED / f"{name}-{digest[:16]}"
    with locked(STORED / "lock", "another run is measuring; wait for it, or stop it"):
        if not _complete(folder) or _manifest(folder)["disturbed"]:
            _take(about, measure, folder, cores)
        _copy(folder, ROOT / out)
    return ROOT / out


def _manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))


def _complete(folder: Path) -> bool:
    try:
        return not _changed(folder, _manifest(folder)["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _take(about: dict[str, Any], measure: Callable[[Run], Tables], folder: Path, cores: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot write {folder}: {error.strerror}") from None
    settings = json.loads(json.dumps(about["settings"], default=plain))
    run = Run(about["name"], SimpleNamespace(**settings), folder / "pieces.jsonl", cores)
    try:
        tables = measure(run)
    finally:
        run.close()
    files = {
        f"{name}.csv": table.to_csv(index=False, float_format="%.9g", lineterminator="\n").encode()
        for name, table in tables.items()
    }
    about = about | {"date": datetime.now(UTC).date().isoformat(), "busy": run.busy(), "disturbed": run.disturbed()}
    about["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = json.dumps(about, indent=1, ensure_ascii=False, default=plain) + "\n"
    files["manifest.json"] = manifest.encode()  # last, since it shows that the folder is complete
    write_together(folder, files)


def _copy(folder: Path, out: Path) -> None:
    """Copy a stored measurement to `out`, unless it is there."""
    manifest = (folder / "manifest.json").read_bytes()
    with suppress(OSError):
        if (out / "manifest.json").read_bytes() == manifest and _complete(out):
            return
    names = [*json.loads(manifest)["files"], "manifest.json"]
    write_together(out, {name: (folder / name).read_bytes() for name in names})


@dataclass(frozen=True)
class Measured:
    """The content of a folder of measurements: tables by name, settings, manifest."""

    folder: Path
    manifest: dict[str, Any]
    tables: Tables

    def __getitem__(self, table: str) -> pd.DataFrame:
        return self.tables[table]

    @property
    def settings(self) -> dict[str, Any]:
        """The measuring notebook's parameters."""
        return dict(self.manifest["settings"])

    @property
    def disturbed(self) -> str:
        """Why claims on this measurement are not judged; "" if they are."""
        if self.settings.get("quick"):
            return "measured in its quick size, which is too small to judge"
        return str(self.manifest["disturbed"])

    @property
    def parameters(self) -> dict[str, Any]:
        """The settings by the names that they have in an exhibit's provenance, beside the notebook's parameters."""
        return {f"measured {name}": value for name, value in self.settings.items()}

    def report(self) -> str:
        """How busy the machine was, in a few lines, and whether claims on this measurement are judged."""
        busy = self.manifest["busy"]
        lines = [f"{busy['pieces']} pieces, {busy['repeated']} measured again, {busy['disturbed']} stayed disturbed"]
        signs = {
            "others_cores": "cores that other programs took",
            "lag_s": "lag of the event loop (s)",
            "work_s": "a fixed piece of work (s)",
        }
        for sign, name in signs.items():
            median, p95, most = (f"{busy[sign][which]:.3f}" for which in ("median", "p95", "most"))
            lines.append(f"{name}: {median} in the median, P95 {p95}, most {most}")
        return "\n".join([*lines, self.disturbed or "claims on this measurement are judged"])


def read(measurements: str | Path, name: str) -> Measured:
    """The measurement `name` in the folder `measurements`, relative to the project's root.

    ArtifactError, in one line, if it is missing, incomplete, or of another version.
    """
    folder = ROOT / measurements / name
    remedy = f"use data/measured, or measure here: `make reproduce`, or the notebook measure_{name}"
    try:
        manifest = _manifest(folder)
        if (manifest["format"], manifest["name"]) != (FORMAT, name):
            raise ValueError(f"it is version {manifest['format']} of {manifest['name']!r}, not {FORMAT} of {name!r}")
        if changed := _changed(folder, manifest["files"]):
            raise ValueError(f"{', '.join(changed)} missing or not as measured")
        tables = {Path(file).stem: _read_csv(folder / file) for file in manifest["files"]}
        return Measured(folder, dict(manifest), tables)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        detail = error.strerror if isinstance(error, OSError) else error
        reason = f"no {error}" if isinstance(error, KeyError) else detail
        where = f"{relative_path(folder)} does not hold the measurement {name}"
        raise ArtifactError(f"{where}: {reason}; {remedy}") from None


def _changed(folder: Path, files: Mapping[str, str]) -> list[str]:
    return [
        name for name, digest in files.items() if not (folder / name).is_file() or _sha256(folder / name) != digest
    ]


def _read_csv(path: Path) -> pd.DataFrame:
    columns = set(pd.read_csv(path, nrows=0))
    unknown = {name: [""] for name in columns - TEXTS}
    return pd.read_csv(path, keep_default_na=False, na_values=unknown, dtype=dict.fromkeys(columns & TEXTS, str))


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
