"""The picture of the system: time goes to the right, a lane each for server, device and reader."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from artifact.publish import figures

STEPS = pd.DataFrame(
    [
        (1, "plan", "decides when each endpoint starts, for the prompt's length and a budget"),
        (2, "race", "the first token wins, and the losing endpoint is cancelled"),
        (3, "hand-over", "in mid-answer, generation moves to the endpoint whose tokens cost less"),
        (4, "buffer", "releases the tokens at the reader's pace, which hides the hand-over"),
    ],
    columns=["step", "name", "what it does"],
)
_SIZE = 7.0, 3.4  # inches
_TEXT = 12  # points: legible at half the width of a page
_SERVER_Y, _DEVICE_Y, _READER_Y = 5.3, 3.15, 0.95
_START, _FIRST, _MOVE = 4.3, 7.1, 9.2  # when the request comes, when its first token, when generation moves
_INK, _RED = "#404040", "#b22222"


def draw() -> Figure:
    """The four steps of STEPS for one answer: the device wins the race, the server continues the answer."""
    fig, axes = plt.subplots(figsize=_SIZE)
    axes.set(xlim=(0, 14), ylim=(0, 6.6))
    axes.set_axis_off()
    _prompt_and_plan(axes)
    _race(axes)
    _hand_over(axes)
    _reader(axes)
    return fig


def _prompt_and_plan(axes: Axes) -> None:
    for y, name in ((_SERVER_Y + 0.75, "server"), (_DEVICE_Y + 0.75, "device"), (_READER_Y, "reader")):
        axes.text(_START, y, name, va="center", fontsize=_TEXT, weight="bold", color=_INK)
    middle, blue = (_SERVER_Y + _DEVICE_Y) / 2, figures.colour("DiSCo")
    _box(axes, (0.05, 1.5), middle, "prompt", "white")
    _box(axes, (1.85, 3.85), middle, "1 plan\nwho starts\nwhen", _tint("DiSCo"), edge=blue, height=1.8)
    _arrow(axes, (1.5, middle), (1.85, middle))
    _arrow(axes, (2.85, middle + 0.9), (_START - 0.05, _SERVER_Y), bend=-0.3)
    _arrow(axes, (2.85, middle - 0.9), (_START - 0.05, _DEVICE_Y), bend=0.3)


def _race(axes: Axes) -> None:
    _box(axes, (_START, _FIRST), _SERVER_Y, "queue, prefill", _tint("server only"))
    axes.plot(_FIRST, _SERVER_Y, "X", color=_RED, markersize=9, zorder=4)
    axes.text(_FIRST + 0.2, _SERVER_Y, "cancelled", va="center", fontsize=_TEXT, color=_RED)
    _box(axes, (_START, _START + 0.95), _DEVICE_Y, "wait", "white", dashed=True)
    _box(axes, (_START + 0.95, _FIRST - 0.05), _DEVICE_Y, "prefill", _tint("device only"))
    _tokens(axes, np.arange(_FIRST + 0.2, _MOVE, 0.36), _DEVICE_Y, ["device only"] * 6)
    axes.plot([_FIRST, _FIRST], [0.3, _SERVER_Y], ":", color=_INK, lw=1, zorder=0)
    axes.text(_FIRST + 0.15, 4.2, "2 race: first\n   token wins", va="center", fontsize=_TEXT, color=_INK)


def _hand_over(axes: Axes) -> None:
    _arrow(axes, (_MOVE + 0.1, _DEVICE_Y), (10.2, _SERVER_Y - 0.45), bend=0.3)
    axes.text(10.35, 3.9, "3 hand-over to the\n   cheaper endpoint", va="center", fontsize=_TEXT, color=_INK)
    _box(axes, (9.45, 10.95), _SERVER_Y, "prefill", _tint("server only"))
    _tokens(axes, np.arange(11.2, 13.9, 0.36), _SERVER_Y, ["server only"] * 8)


def _reader(axes: Axes) -> None:
    makers = ["device only"] * 6 + ["server only"] * 4  # the seventh is generated before it is due
    _tokens(axes, _FIRST + 0.2 + 0.72 * np.arange(len(makers)), _READER_Y, makers)
    axes.text(_FIRST + 0.15, 1.75, "4 buffer: paced for the reader", va="center", fontsize=_TEXT, color=_INK)
    _arrow(axes, (_START, 0.3), (13.9, 0.3))
    axes.text(_START - 0.15, 0.3, "time", ha="right", va="center", fontsize=_TEXT, color=_INK)


def _box(
    axes: Axes,
    span: tuple[float, float],
    y: float,
    text: str,
    fill: str,
    *,
    edge: str = _INK,
    dashed: bool = False,
    height: float = 0.84,
) -> None:
    style: dict[str, Any] = {"facecolor": fill, "edgecolor": edge, "linestyle": "--" if dashed else "-"}
    axes.add_patch(Rectangle((span[0], y - height / 2), span[1] - span[0], height, **style))
    axes.text(sum(span) / 2, y, text, ha="center", va="center", fontsize=_TEXT, color=_INK)


def _tokens(axes: Axes, x: NDArray[np.floating[Any]], y: float, makers: Sequence[str]) -> None:
    colours = [figures.colour(maker) for maker in makers]
    axes.scatter(x[: len(makers)], [y] * len(makers), s=80, marker="s", c=colours, edgecolors=_INK, linewidths=0.5)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
    look: dict[str, Any] = {"arrowstyle": "-|>", "color": _INK, "lw": 1.1, "connectionstyle": f"arc3,rad={bend}"}
    look |= {"shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=look)


def _tint(policy: str) -> str:
    """A policy's colour, lightened, as the ground of a text."""
    red, green, blue = (int(figures.colour(policy)[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(255 - 0.3 * (255 - part)):02x}" for part in (red, green, blue))
