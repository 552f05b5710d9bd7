"""An exhibit for tests: a small figure, its numbers, and a measurement that it may be of."""

import json

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from artifact.publish import figures

NUMBERS = pd.DataFrame({"budget": [0.1, 0.2], "ttft_s": [1 / 3, np.nan], "n": [1, 2_000_000_000]})


def drawn(shift=0.0):
    fig = Figure(figsize=(figures.COLUMN_IN, 2))
    axes = fig.subplots()
    axes.plot([0, 1, 2], np.array([1, 3, 2]) + shift, color=figures.colour("DiSCo-D"), label="α = 0.05")
    axes.fill_between([0, 1, 2], [0, 1, 1], [2, 3, 3], alpha=0.2, hatch="//")
    axes.legend()
    return fig


MACHINE = {"cpu": "Some CPU", "cores": 2, "memory_gib": 4.0, "system": "Linux x86_64"}


def measurement(folder):
    """The folder of a measurement, as far as provenance reads it."""
    folder.mkdir(exist_ok=True)
    about = {"machine": MACHINE, "date": "2026-01-31", "files": {"times.csv": "0" * 64}}
    (folder / "manifest.json").write_text(json.dumps(about))
    return folder


def save(out, fig=None, stem="try_one", kind="simulated", **more):
    given = {
        "title": "A line",
        "caption": "A try.",
        "interpretation": "It goes up.",
        "kind": kind,
        "source": "committed tables",
        "parameters": {"b": 0.3},
        "out": out,
    }
    if kind == "measured":
        given["measured"] = measurement(out.parent / "device")
    return figures.save(fig or drawn(), stem, NUMBERS, **(given | more))
