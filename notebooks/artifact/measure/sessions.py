"""What was measured on two live ends, kept: where it is, what it was measured with, and how it is read.

A folder holds a csv for each table of the settings, and `settings.json`. Without one they are measured.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from artifact.commands import command
from artifact.errors import ArtifactError
from artifact.files import BUILD, ROOT, write_together
from artifact.measure.answers import Tables
from artifact.measure.kept import reading, require
from artifact.measure.live import Settings
from artifact.measure.pd_device import PDSettings
from artifact.measure.quality import QualitySettings
from disco_core.errors import InputError

Asked = Settings | PDSettings | QualitySettings
SESSIONS: dict[str, Callable[[], Asked]] = {"live": Settings, "pd": PDSettings, "quality": QualitySettings}
TEXTS = {"text", "before", "after"}  # columns that are text whatever they say, be it nothing or "NA"


def live_measurements(measurements: Path | str, settings: Asked) -> tuple[Path, Tables]:
    """Where the measurements are and what they are, by table.

    Without a folder they are made (in about a quarter of an hour; quick: one minute), and kept in the build folder
    for the next call. ArtifactError for a folder that does not hold them, or holds those of other settings.
    """
    folder = ROOT / measurements if measurements else default_folder(settings)
    if not measurements and not (folder / "requests.csv").exists():
        _measure(folder, settings)
    with reading(folder, "live measurements"):
        made = type(settings)(**json.loads((folder / "settings.json").read_text()))
        found = {name: _read(folder / f"{name}.csv") for name in settings.tables}
        for name, columns in settings.tables.items():
            require(found[name], columns, f"{name}.csv")
    other = [f"{k}={v!r}" for k, v in asdict(made).items() if v != getattr(settings, k)]
    if other:
        raise ArtifactError(f"{folder} was measured with {', '.join(other)}; without it, yours are made anew")
    return folder / "requests.csv", found


def default_folder(settings: Asked) -> Path:
    """Where measurements of these settings are kept."""
    usual = type(settings)()
    if settings in (usual, usual.quick()):
        return BUILD / ("" if settings == usual else "quick") / "measured" / settings.name
    said = json.dumps(asdict(settings), sort_keys=True)
    return BUILD / "measured" / f"{settings.name}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


def _read(path: Path) -> pd.DataFrame:
    columns = set(pd.read_csv(path, nrows=0))
    unknown = {name: [""] for name in columns - TEXTS}  # as `_measure` writes it
    text = dict.fromkeys(columns & TEXTS, str)
    return pd.read_csv(path, keep_default_na=False, na_values=unknown, dtype=text)


def _measure(folder: Path, settings: Asked) -> Tables:
    found = settings.measure()
    files = {"settings.json": json.dumps(asdict(settings), indent=2).encode() + b"\n"}
    for name in settings.tables:
        text = found[name].to_csv(index=False, float_format="%.6f", lineterminator="\n")
        files[f"{name}.csv"] = text.encode()
    write_together(folder, files)
    return found


@command("no measurement was kept")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure into a folder; exit 0, 1 with one line for an error, 130 when interrupted (nothing is written)."""
    parser = argparse.ArgumentParser(
        prog="python -m artifact.measure.sessions",
        description="Let two live ends answer and write what was measured.",
    )
    asked = "every policy, P/D-Device, or answers that move, as text (default: live)"
    parser.add_argument("what", nargs="?", default="live", choices=list(SESSIONS), help=asked)
    parser.add_argument("--out", type=Path, help="folder of the tables (default: build/measured/<what>)")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter answers")
    parser.add_argument("--server", help="local, or openai:<model>; for live only (default: local)")
    options = parser.parse_args(argv)
    if options.what != "live" and options.server is not None:
        raise InputError(f"--server is for live only: {options.what} needs the local one")
    settings = Settings(server=options.server) if options.server else SESSIONS[options.what]()
    if options.quick:
        settings = settings.quick()
    folder = options.out or default_folder(settings)
    found = _measure(folder, settings)
    print(f"{len(found['requests'])} answers measured: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
