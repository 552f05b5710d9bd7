"""Exhibits: one style, one colour per policy; `save` and `save_table` write an exhibit with its provenance.

A figure is five files of one stem: .svg .pdf .png, the .csv of its numbers and the .json of what it shows and where
the numbers come from. A table is .csv .md .tex and .json. All files are made before the first is put in place, and
the same numbers give the same bytes at every run.
"""

import hashlib
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from artifact.files import FIGURES, folder, write_together
from artifact.publish import tex
from artifact.publish.provenance import Kind, record
from disco_core.errors import InputError

COLUMN_IN, PAGE_IN = 3.33, 7.0  # widths of a column and of a page of a two-column paper, inches
FORMATS = {"svg": FigureCanvasSVG, "pdf": FigureCanvasPdf, "png": FigureCanvasAgg}
STYLE = Path(__file__).with_name("disco.mplstyle")

# colour, dash and marker of a policy: told apart by the colour-blind, and in grey
POLICIES: dict[str, tuple[str, Any, str]] = {
    "server only": ("#949494", "-.", "s"),
    "device only": ("#ca9161", (0, (6, 2)), "D"),
    "Stoch": ("#de8f05", "--", "v"),
    "Stoch+": ("#cc78bc", ":", "^"),  # the reading that favours the baseline: the other endpoint always
    "DiSCo": ("#0173b2", "-", "o"),
    "optimal": ("#d55e00", (0, (5, 1)), "*"),
    "optimal, guarded": ("#a33b00", (0, (1, 3)), "d"),
    "SingleR": ("#029e73", (0, (3, 1, 1, 1, 1, 1)), "p"),
    "hedged request": ("#ece133", (0, (2, 1)), "h"),
    "clairvoyant": ("#000000", (0, (1, 1)), "x"),
    "DiSCo, elastic": ("#d55e00", "--", "^"),
    "DiSCo, elastic, equal work": ("#56b4e9", ":", "X"),
    "cloud only": ("#949494", "-.", "s"),
    "P/D-Device": ("#029e73", (0, (4, 1, 1, 1)), "P"),
    "P/D-Device, refined": ("#5fc9a5", (0, (1, 2)), "X"),
}
SERIES = ("#0173b2", "#de8f05", "#029e73", "#cc78bc", "#ca9161", "#949494")  # of things that are no policies
_DASHES = ("-", "--", ":", "-.", (0, (6, 2)), (0, (4, 1, 1, 1)))
_METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "ModDate": None},
    "png": {"Software": None},
}


def use_style() -> None:
    """Set the house style for everything drawn from here on."""
    sns.set_theme(context="paper", style="ticks", rc=_style())


def colour(policy: str) -> str:
    """The colour of a policy, the same in every figure. InputError as `line`."""
    return str(line(policy)["color"])


def line(policy: str, *, marker: bool = False) -> dict[str, Any]:
    """How a policy's line is drawn in every figure: colour, dash and, if asked for, marker.

    -S and -D variants share their policy's. Raises InputError on a policy without one.
    """
    found = POLICIES.get(re.sub(r"-[SD](\+?)$", r"\1", policy))
    if found is None:
        raise InputError(
            f"no colour for policy {policy!r}; there are {', '.join(POLICIES)}, with -S or -D or without"
        )
    return {"color": found[0], "linestyle": found[1]} | ({"marker": found[2]} if marker else {})


def series(k: int) -> dict[str, Any]:
    """How the k-th of several things that are no policies is drawn: services, devices."""
    return {"color": SERIES[k % len(SERIES)], "linestyle": _DASHES[k % len(_DASHES)]}


def look(policies: Iterable[str], *, marker: bool = False) -> dict[str, Any]:
    """What seaborn needs to draw these policies as `line` does: hue and style order, palette, dashes, markers.

    >>> sorted(look(["DiSCo", "Stoch"]))
    ['dashes', 'hue_order', 'markers', 'palette', 'style_order']
    """
    order = list(policies)
    lines = {name: line(name, marker=True) for name in order}
    return {
        "hue_order": order,
        "style_order": order,
        "palette": {name: its["color"] for name, its in lines.items()},
        "dashes": {name: _on_off(its["linestyle"]) for name, its in lines.items()},
        "markers": {name: its["marker"] for name, its in lines.items()} if marker else False,
    }


def band(data: pd.DataFrame, *, x: str, low: str, high: str, hue: str = "policy", **_: Any) -> None:
    """Shade a band that was computed before, for each policy: for `FacetGrid.map_dataframe`, after the lines."""
    axes = plt.gca()
    for policy, rows in data.groupby(hue, sort=False):
        axes.fill_between(rows[x], rows[low], rows[high], color=colour(str(policy)), alpha=0.2, lw=0)


def save(
    fig: Figure,
    stem: str,
    numbers: pd.DataFrame,
    *,
    caption: str,
    kind: Kind,
    source: str,
    parameters: Mapping[str, Any],
    title: str,
    interpretation: str,
    out: str | Path = FIGURES,
    data: Iterable[str | Path] | None = None,
    measured: str | Path | None = None,
) -> list[Path]:
    """Write one figure to `out` (relative to the project's root) and return its paths; a notebook then shows it.

    stem            lower-case, starts with the stem of its notebook: `dispatch`, `dispatch_tail`
    numbers         what the figure shows, one row a point; floats are written with 6 significant digits
    title           a short heading, without a full stop
    caption         what is drawn: axes, symbols, abbreviations
    interpretation  what a reader learns from it, in one to three sentences
    kind            "simulated", "computed" (from data) or "measured", which names the machine and the day
    source          where the numbers come from, such as "committed tables" or "public series"
    parameters      of the notebook
    data            committed files the numbers come from; by default the tables of `data/`
    measured        the folder of the measurement, with its manifest

    Raises InputError for a bad stem or kind, empty texts or empty numbers; ArtifactError, with the earlier files
    untouched, where the exhibit cannot be written.
    """
    provenance = {"kind": kind, "source": source, "parameters": parameters, "data": data, "measured": measured}
    texts = {"title": title, "caption": caption, "interpretation": interpretation}
    pictures = {f"{stem}.{suffix}": content for suffix, content in _rendered(fig).items()}
    paths = _write(stem, numbers, pictures, texts, folder(out), provenance)
    if _show(fig, pictures[f"{stem}.png"]):
        _show_texts(texts)
    return paths


def save_table(
    table: pd.DataFrame,
    stem: str,
    *,
    caption: str,
    kind: Kind,
    source: str,
    parameters: Mapping[str, Any],
    title: str,
    interpretation: str,
    numbers: pd.DataFrame | None = None,
    digits: int = 3,
    out: str | Path = FIGURES,
    data: Iterable[str | Path] | None = None,
    measured: str | Path | None = None,
) -> list[Path]:
    """Write one table as csv, Markdown and LaTeX, and return its paths; a notebook then shows it. Else as `save`.

    numbers     what the csv holds; by default the table
    digits      significant digits that are shown
    """
    if table.empty:
        raise InputError("a table needs at least one row")
    provenance = {"kind": kind, "source": source, "parameters": parameters, "data": data, "measured": measured}
    texts = {"title": title, "caption": caption, "interpretation": interpretation}
    shown = pd.DataFrame(_cells(table, digits), columns=list(map(str, table.columns)))
    numeric = [pd.api.types.is_numeric_dtype(table[name]) for name in table.columns]
    markdown = _markdown(shown, numeric)
    latex = tex.float_of(shown, numeric, stem=stem, caption=f"{title}. {caption}" if title else caption)
    files = {f"{stem}.md": markdown.encode(), f"{stem}.tex": latex.encode()}
    paths = _write(stem, table if numbers is None else numbers, files, texts, folder(out), provenance)
    if _kernel() is not None:
        _show_markdown(markdown)
        _show_texts(texts)
    return paths


def _write(
    stem: str,
    numbers: pd.DataFrame,
    files: dict[str, bytes],
    texts: dict[str, str],
    where: Path,
    provenance: dict[str, Any],
) -> list[Path]:
    """Put the files of one exhibit in place, with its numbers and its provenance."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", stem):
        raise InputError(f"stem {stem!r} must be lower-case words joined by _, the first its notebook's name")
    if provenance["kind"] not in get_args(Kind):
        raise InputError(f"kind {provenance['kind']!r} must be one of {', '.join(get_args(Kind))}")
    if numbers.empty or not all(text.strip() for text in texts.values()):
        raise InputError(f"exhibit {stem} needs a title, a caption and an interpretation, and a row of numbers")
    csv = _without_rounding(numbers).to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()
    about = record(stem, csv, texts=texts, **provenance)
    files = files | {f"{stem}.csv": csv}
    about["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[f"{stem}.json"] = (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode()
    return write_together(where, files)


def _without_rounding(numbers: pd.DataFrame) -> pd.DataFrame:
    """The numbers with 0 for what a difference of equal values leaves, which is another on each machine.

    That is less than 1e-12 of the largest value of its column, or of .001 where all are smaller.
    """
    found = numbers.copy()
    for at, (_, column) in enumerate(numbers.items()):
        if pd.api.types.is_float_dtype(column):
            least = 1e-12 * max(column.abs().max(), 1e-3)
            found.isetitem(at, column.mask(column.abs() < least, 0.0))
    return found


def _markdown(shown: pd.DataFrame, numeric: list[bool]) -> str:
    barred = shown.map(lambda text: text.replace("|", r"\|"))
    sides = ["right" if its else "left" for its in numeric]
    return str(barred.to_markdown(index=False, disable_numparse=True, colalign=sides)) + "\n"


def show(fig: Figure) -> None:
    """Show a figure that is no exhibit, also in an executed copy, whose kernel has no screen."""
    _show(fig, _rendered(fig)["png"])


def _rendered(fig: Figure) -> dict[str, bytes]:
    """The figure in every format, laid out once and drawn once for each: `savefig` would do both once more."""
    # the style again: its salt and fonts decide the bytes, whatever the caller's settings are
    fixed = {name: value for name, value in _style().items() if name.split(".")[0] in ("svg", "pdf", "savefig")}
    found, canvas, dpi, layout = {}, fig.canvas, fig.dpi, fig.get_layout_engine()
    with mpl.rc_context(fixed):
        try:
            fig.set_dpi(mpl.rcParams["savefig.dpi"])  # where small letters are wider than on a screen
            fig.draw_without_rendering()
            fig.set_layout_engine("none")
            for suffix, drawn_on in FORMATS.items():
                fig.set_dpi(mpl.rcParams["savefig.dpi"])
                target = io.BytesIO()
                getattr(drawn_on(fig), f"print_{suffix}")(target, metadata=_METADATA[suffix])
                found[suffix] = target.getvalue()
        finally:
            fig.set_canvas(canvas)
            fig.set_dpi(dpi)
            fig.set_layout_engine(layout)
    return found


def _show(fig: Figure, png: bytes) -> bool:
    """Show a figure of pyplot's as it was saved, where a notebook runs, in place of drawing it once more."""
    if fig.canvas.manager is None or _kernel() is None:
        return False
    from IPython.display import Image, display

    display(Image(png, width=round(96 * fig.get_figwidth())))  # type: ignore[no-untyped-call]
    plt.close(fig)
    return True


def _show_texts(texts: Mapping[str, str]) -> None:
    _show_markdown(f"**{texts['title']}.** {texts['caption']} *{texts['interpretation']}*")


def _show_markdown(text: str) -> None:
    from IPython.display import Markdown, display

    display(Markdown(text))  # type: ignore[no-untyped-call]


def _kernel() -> Any:
    """IPython's shell in a kernel, which can show a picture; None in a terminal, which cannot."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell if shell is not None and shell.has_trait("kernel") else None


def _on_off(linestyle: Any) -> Any:
    """A line style of Matplotlib as seaborn takes dashes: "" for a solid line, else lengths on and off."""
    named = {"-": "", "--": (3.7, 1.6), ":": (1, 1.65), "-.": (6.4, 1.6, 1, 1.6)}
    return named[linestyle] if isinstance(linestyle, str) else linestyle[1]


def _style() -> Any:  # matplotlib types the keys one by one
    return dict(**mpl.rc_params_from_file(STYLE, use_default_template=False))


def _cells(table: pd.DataFrame, digits: int) -> list[list[str]]:
    return [[_cell(value, digits) for value in row] for row in table.itertuples(index=False)]


def _cell(value: Any, digits: int) -> str:
    if value is None or value != value:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:#.{digits}g}".rstrip(".")
