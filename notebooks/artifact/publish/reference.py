"""Make what this machine measured the reference that is committed, `data/measured/`."""

from pathlib import Path

from artifact.errors import ArtifactError
from artifact.files import DATA, ROOT, write_together
from artifact.measure import store

NAMES = ("device", "live", "pd_device", "quality", "overhead")
# taken where they were measured, and evaluated if they can be
OPTIONAL = ("campaign", "elastic", "objectives", "optimal", "load")
MOST_BYTES = 3 * 10**6


def take(measured: str | Path, out: Path = DATA / "measured") -> list[Path]:
    """Copy the five measurements of a folder, and those that are optional; returns where they are now.

    ArtifactError, with nothing copied, where one is missing, not whole, quick or disturbed, or all are over 3 MB.
    """
    names = [*NAMES, *(name for name in OPTIONAL if (ROOT / measured / name / "manifest.json").exists())]
    found = {name: store.read(measured, name) for name in names}
    found = {name: one for name, one in found.items() if one.settings.get("evaluate", True)}
    for name, one in found.items():
        if one.disturbed:
            raise ArtifactError(f"{measured}/{name} is no reference: {one.disturbed}")
    files = {
        name: {path: (one.folder / path).read_bytes() for path in (*one.manifest["files"], "manifest.json")}
        for name, one in found.items()
    }
    size = sum(len(content) for folder in files.values() for content in folder.values())
    if size > MOST_BYTES:
        raise ArtifactError(
            f"{ROOT / measured} holds {size / 1e6:.1f} MB, a reference at most {MOST_BYTES / 1e6:.0f}"
        )
    for name, contents in files.items():
        for old in (out / name).glob("*"):
            if old.name not in contents:
                old.unlink()
        write_together(out / name, contents)
    return [out / name for name in found]
