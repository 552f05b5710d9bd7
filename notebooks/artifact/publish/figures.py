"""Figures: one style, one colour per policy, and one `save` that writes an exhibit with its provenance.

An exhibit is five files of one stem: .svg .pdf .png, the .csv of its numbers and the .json of where they come
from; a table is also .md and .tex. All are made before the first is put in place, and from the same numbers they are
the same bytes at every run.
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
from matplotlib.transforms import Bbox

from artifact.files import FIGURES, folder, write_together
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
    "Stoch+": ("#cc78bc", ":", "^"),  # the kinder reading: the cheap end always
    "DiSCo": ("#0173b2", "-", "o"),
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


def save(
    fig: Figure,
    stem: str,
    numbers: pd.DataFrame,
    *,
    caption: str,
    kind: Kind,
    source: str,
    parameters: Mapping[str, Any],
    out: str | Path = FIGURES,
    data: Iterable[str | Path] | None = None,
    measured: str | Path | None = None,
    also: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write one exhibit to `out` (relative to the project's root) and return its paths; a notebook then shows it.

    stem        lower-case, starts with the stem of its notebook: `dispatch`, `dispatch_tail`
    numbers     what the figure shows, one row a point; floats are written with 6 significant digits
    kind        "simulated", "computed" (from data) or "measured", which names the machine and the day
    source      where the numbers come from, such as "committed tables" or "public series"
    parameters  of the notebook
    data        committed files the numbers come from; by default the tables of `data/`
    measured    the folder of the measurement, with its manifest
    also        texts of more files of the stem, by suffix

    Raises InputError for a bad stem, kind or empty numbers; ArtifactError, with the earlier files whole,
    where the exhibit cannot be written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", stem):
        raise InputError(f"stem {stem!r} must be lower-case words joined by _, the first its notebook's name")
    where = folder(out)
    if kind not in get_args(Kind):
        raise InputError(f"kind {kind!r} must be one of {', '.join(get_args(Kind))}")
    if numbers.empty or not caption.strip():
        raise InputError(f"exhibit {stem} needs a caption and at least one row of numbers")
    csv = numbers.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()
    about: dict[str, Any] = {"caption": caption, "kind": kind, "source": source, "parameters": parameters}
    found = record(stem, csv, **about, data=data, measured=measured)
    files = {f"{stem}.{suffix}": content for suffix, content in _rendered(fig).items()} | {f"{stem}.csv": csv}
    files |= {f"{stem}.{suffix}": text.encode() for suffix, text in (also or {}).items()}
    found["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[f"{stem}.json"] = (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode()
    paths = write_together(where, files)
    _show(fig, files[f"{stem}.png"])
    return paths


def save_table(
    table: pd.DataFrame,
    stem: str,
    *,
    numbers: pd.DataFrame | None = None,
    width: float = PAGE_IN,
    digits: int = 3,
    **about: Any,
) -> list[Path]:
    """`save` for a table: drawn `width` inches wide, and as Markdown and LaTeX (booktabs) to cite; numbers with
    `digits` significant digits. The csv holds `numbers`, by default those shown. The rest is told as to `save`.
    """
    fig = table_figure(table, width=width, digits=digits)
    shown = pd.DataFrame(_cells(table, digits), columns=list(map(str, table.columns)))
    sides = ["right" if pd.api.types.is_numeric_dtype(table[name]) else "left" for name in table.columns]
    barred = shown.map(lambda text: text.replace("|", r"\|"))
    markdown = barred.to_markdown(index=False, disable_numparse=True, colalign=sides) + "\n"
    latex = shown.to_latex(index=False, escape=True, column_format="".join(side[0] for side in sides))
    return save(fig, stem, table if numbers is None else numbers, also={"md": markdown, "tex": latex}, **about)


def table_figure(table: pd.DataFrame, *, width: float = PAGE_IN, digits: int = 3) -> Figure:
    """A table drawn as a figure, `width` inches wide; numbers with `digits` significant digits."""
    if table.empty:
        raise InputError("a table figure needs at least one row")
    rows = _cells(table, digits)
    names = [str(name) for name in table.columns]
    # names are bold, so wider
    widths = [max(1.2 * len(name), *(len(row[k]) for row in rows)) + 2 for k, name in enumerate(names)]
    with mpl.rc_context(_style()):
        fig = Figure(figsize=(width, 0.19 * (len(rows) + 1) + 0.08))
        fig.set_layout_engine("none")
        axes = fig.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        drawn = axes.table(
            rows,
            colLabels=names,
            colWidths=[w / sum(widths) for w in widths],
            loc="center",
            edges="horizontal",
            bbox=Bbox.from_bounds(0.01, 0.02, 0.98, 0.96),
        )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(6.5)
    for (row, column), cell in drawn.get_celld().items():
        numeric = pd.api.types.is_numeric_dtype(table.iloc[:, column])
        cell.set(linewidth=0.6 if row == 0 else 0.2, edgecolor="#404040" if row == 0 else "#d0d0d0")
        cell.set_text_props(ha="right" if numeric else "left", weight="bold" if row == 0 else "normal")
    return fig


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


def _show(fig: Figure, png: bytes) -> None:
    """Show a figure of pyplot's as it was saved, where a notebook runs, in place of drawing it once more."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if fig.canvas.manager is None or shell is None or not shell.has_trait("kernel"):  # a terminal has no place for it
        return
    from IPython.display import Image, display

    display(Image(png, width=round(96 * fig.get_figwidth())))  # type: ignore[no-untyped-call]
    plt.close(fig)


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
