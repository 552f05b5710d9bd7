"""The report: one self-contained page with the results, the claims, every exhibit, and how each was made.

Pictures and style are in the page, so it opens without a network, prints, and reads on a phone. Everything it says of
an exhibit stands in the exhibit's json.
"""

import base64
import io
import re
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from artifact.errors import ArtifactError
from artifact.files import BUILD, CHAPTERS, FIGURES, ROOT, write_atomic
from artifact.measure.machine import machine
from artifact.publish import claims_table
from artifact.publish.cite import citation
from artifact.publish.gallery import GLOSSARY, exhibits, origin

TEMPLATE = Path(__file__).with_name("report.html.jinja")
STYLE = Path(__file__).with_name("page.css")  # of the report and of a pair's page


def report(
    directory: str | Path = FIGURES,
    out: str | Path = BUILD / "report.html",
    here: str | Path | None = None,
) -> Path:
    """Write the report of a directory of exhibits and return its path.

    here        folder of the verdicts on what this machine measured, shown beside the reference's

    Raises ArtifactError where an exhibit has lost a file, is older than its data, or is named by a tested claim but
    was not rendered.
    """
    from jinja2 import Environment

    every, shown = exhibits(directory), claims_table.lines(directory, here=here)
    if missing := claims_table.lost(directory, shown):
        raise ArtifactError(f"no exhibit in {directory} is called {', '.join(missing)}; run `make figures`")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        style=STYLE.read_text(encoding="utf-8"),
        version=metadata.version("disco-core"),
        commit=_commit(),
        machine=machine(),
        packages=dict(sorted({name: its for one in every for name, its in one["packages"].items()}.items())),
        claims=shown,
        headline=[one for one in shown if one.id in claims_table.HEADLINE],
        count=claims_table.count(shown),
        glossary=_html(GLOSSARY),
        titles={one["stem"]: one["title"] for one in every},
        chapters=_chapters(every, ROOT / directory),
    )
    return write_atomic(ROOT / out, page)


def _chapters(every: Iterable[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The exhibits by notebook, in reading order."""
    by_notebook: dict[str, list[dict[str, Any]]] = {}
    for one in every:
        by_notebook.setdefault(Path(one["notebook"] or one["stem"]).stem, []).append(for_page(one, folder))
    order = [*CHAPTERS, *sorted(by_notebook.keys() - CHAPTERS.keys())]
    return [
        {"stem": stem, "title": CHAPTERS.get(stem, stem), "exhibits": by_notebook[stem]}
        for stem in order
        if stem in by_notebook
    ]


def for_page(about: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """An exhibit as a page shows it: its texts, and its picture as WebP in base64, or its table as HTML."""
    stem = about["stem"]
    drawn = f"{stem}.png" in about["files"]
    return {
        **{name: about[name] for name in ("stem", "caption", "interpretation", "parameters", "digest")},
        "title": about["title"],
        "table": "" if drawn else _table(folder / f"{stem}.md"),
        "picture": _webp(folder / f"{stem}.png") if drawn else "",
        "origin": origin(about),
        "data": sorted(about["data"]),
        "citation": citation(about),
    }


def _webp(path: Path) -> str:
    """A picture as WebP in base64: in full resolution, without visible loss, at a fifth of the size."""
    from PIL import Image

    content = io.BytesIO()
    Image.open(path).convert("RGB").quantize(128).save(content, "webp", lossless=True, quality=80)
    return base64.b64encode(content.getvalue()).decode()


def _table(path: Path) -> str:
    return _html(path.read_text(encoding="utf-8"))


def _html(markdown: str) -> str:
    """Markdown as HTML; links to other files of the project lead nowhere from here, so they are text."""
    import mistune

    text = str(mistune.create_markdown(escape=True, plugins=["table"])(markdown))
    return re.sub(r'<a href="(?!https?:)[^"]*">(.*?)</a>', r"\1", text, flags=re.DOTALL)


def _commit() -> str:
    """The commit the report was made at, with a + where something tracked differs from it."""
    asked = [["git", "rev-parse", "--short=12", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"]]
    try:
        commit, changed = (
            subprocess.run(one, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() for one in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"
    return commit + ("+" if changed else "")
