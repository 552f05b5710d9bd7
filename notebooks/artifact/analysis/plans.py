"""The two DiSCo plans for one budget, by prompt length: as a table, and as a picture."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from artifact.publish import figures
from disco_core.cost import End
from disco_core.dispatch import DispatchPlan
from disco_core.workload import LengthDistribution

_INK = "#404040"
_DRAWN = 0.99  # share of all prompt tokens up to which lengths are drawn


def by_length(device_plan: DispatchPlan, server_plan: DispatchPlan, prompts: LengthDistribution) -> pd.DataFrame:
    """What DiSCo-D and DiSCo-S, made for these prompts, do with each length.

    prompt_tokens            l
    share_of_prompt_tokens   of all prompt tokens, in prompts of at most this length
    device_waits_s           DiSCo-D: seconds until the device starts, mean over the plan's choices
    server_starts            DiSCo-S: 1 where the server starts, at once, as well as the device; 0 where it never does
    """
    mass, chance = prompts.tokens * prompts.counts, device_plan.probability
    waits_s = np.where(chance > 0, device_plan.delays_s[End.DEVICE], 0.0)  # an infinite one that is never chosen
    return pd.DataFrame(
        {
            "prompt_tokens": prompts.tokens,
            "share_of_prompt_tokens": np.cumsum(mass) / mass.sum(),
            "device_waits_s": (waits_s * chance).sum(axis=1),
            "server_starts": np.isfinite(server_plan.delays_s[End.SERVER, :, 0]).astype(int),
        }
    )


def thresholds(table: pd.DataFrame) -> tuple[int, int]:
    """The longest prompts that DiSCo-D gives no wait, and that DiSCo-S sends to the device only; 0 for none."""
    at_once = table[table["device_waits_s"] == 0]["prompt_tokens"].max()
    alone = table[table["server_starts"] == 0]["prompt_tokens"].max()
    return (0 if np.isnan(at_once) else int(at_once)), (0 if np.isnan(alone) else int(alone))


def draw(table: pd.DataFrame, budget: float) -> Figure:
    """Left the wait of DiSCo-D against prompt length, right the share of prompt tokens by which DiSCo-S splits."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(figures.PAGE_IN, 2.7))
    look = {"x": "prompt_tokens", "drawstyle": "steps-mid", "color": figures.colour("DiSCo"), "linewidth": 2}
    sns.lineplot(table, y="device_waits_s", ax=left, **look)
    sns.lineplot(table, y="share_of_prompt_tokens", ax=right, **look)
    for_device, for_server = thresholds(table)
    _threshold(left, for_device, 0.3, f"up to {for_device} tokens:\nboth start at once")
    _threshold(right, for_server, 0.3, f"up to {for_server} tokens:\ndevice only")
    left.annotate("longer: the device waits\nfor the server", (0.3, 0.8), xycoords="axes fraction", va="center")
    right.annotate("longer: both start at once", (0.95, 0.77), xycoords="axes fraction", ha="right", va="center")
    right.axhline(1 - budget, color=_INK, lw=0.8, ls="--")
    longest = int(table[table["share_of_prompt_tokens"] >= _DRAWN]["prompt_tokens"].min())
    right.annotate(f"1 - b = {1 - budget:.2g}", (longest, 1 - budget - 0.02), ha="right", va="top")
    left.set(title="DiSCo-D: the device is constrained", ylabel="wait before the device starts (s)")
    right.set(title="DiSCo-S: the server is constrained", ylabel="share of all prompt tokens ≤ l", ylim=(0, 1.02))
    for axes in (left, right):
        axes.set(xlabel="prompt length l (tokens)", xlim=(0, longest))
    return fig


def _threshold(axes: Axes, at: int, height: float, words: str) -> None:
    """A line at the longest length of a group, and from the right an arrow to it with what is done up to there."""
    axes.axvline(at + 0.5, color=_INK, lw=0.8, ls="--")
    look = {"arrowstyle": "-|>", "color": _INK}
    frame = axes.get_xaxis_transform()  # tokens to the right, share of the panel upwards
    axes.annotate(words, (at + 0.5, height), (at + 16, height), xycoords=frame, va="center", arrowprops=look)
