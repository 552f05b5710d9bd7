"""What live answers of P/D-Device and its baselines show, beside what the simulator says of the same requests."""

from typing import Any

import numpy as np
import pandas as pd

from artifact.analysis.pd_device import REFINED, SYSTEMS
from artifact.measure.answers import device_profile
from artifact.measure.store import Measured
from disco_core.latency import DeviceProfile
from disco_core.systems import pd_device
from disco_core.workload import Workload

POLICIES = (*SYSTEMS, REFINED)
HEADERS = {  # what a reader sees in place of a column's name
    "ttft_s": "TTFT (s)",
    "longest_s": "longest gap (s)",
    "cloud_s": "cloud (s)",
    "cloud_tokens": "cloud tokens",
    "device_prefill": "device prefill",
    "taken_over": "taken over",
    "live_ttft_s": "live TTFT (s)",
    "simulated_ttft_s": "simulated TTFT (s)",
    "ttft_error_percent": "TTFT error (%)",
    "live_cloud_s": "live cloud (s)",
    "simulated_cloud_s": "simulated cloud (s)",
    "cloud_error_percent": "cloud error (%)",
}
EVENTS = ("cloud generates", "device generates", "released to the reader")


def summary(measured: Measured) -> pd.DataFrame:
    """Each policy: median TTFT, stalls, longest gap, cloud time, tokens, take-overs at first try, and recalls."""
    asked, limit_s = measured["requests"], measured.settings["tpot_limit_s"]
    flags = asked.assign(
        taken=(asked.migrated_at > 0) & (asked.recalls == 0),
        recalled=asked.recalls > 0,
        stall=asked.tpot_max_s > limit_s + 0.001,
    )
    by = flags.groupby("policy").agg(
        ttft_s=("ttft_s", "median"),
        stalls=("stall", "sum"),
        longest_s=("tpot_max_s", "max"),
        cloud_s=("cloud_s", "mean"),
        cloud_tokens=("server_decode", "mean"),
        device_prefill=("device_prefill", "mean"),
        taken_over=("taken", "mean"),
        recalls=("recalled", "sum"),
    )
    return by.loc[list(POLICIES)].reset_index()


def profiles(measured: Measured) -> tuple[DeviceProfile, dict[str, float]]:
    """The device, and both endpoints' decode rates, as measured among these answers with both at work."""
    among = measured["profile"].query("among")
    rates = {str(end): float(1 / rows.gap_s.median()) for end, rows in among.groupby("end")}
    return device_profile(among.dropna(subset=["device_s"]), among), rates


def agreement(measured: Measured) -> pd.DataFrame:
    """Live median TTFT and mean cloud time beside the simulator's, from the same prompts and emulated delays."""
    asked, live = measured["requests"], summary(measured).set_index("policy")
    device, rates = profiles(measured)
    token_s, rows = 1 / rates["server"], list[dict[str, Any]]()
    for system in (name for name in POLICIES if name != "DiSCo"):
        one = asked[(asked.policy == system) & (asked.tokens > 0)].sort_values("request")
        load = Workload(np.zeros(len(one)), one.prompt_tokens, one.tokens)
        if system == "cloud only":
            answers = pd_device.cloud_only(load, one.held_s, token_s)
        elif system == "device only":
            answers = pd_device.device_only(load, device)
        else:
            limit_s, rho = measured.settings["tpot_limit_s"], measured.settings["rho"] if system == REFINED else 1.0
            given = one.held_s, token_s, device, load.prompt_tokens, load.output_tokens, limit_s
            chosen = pd_device.choose(*given, (rho,), np.zeros(1), 0)
            answers = pd_device.simulate_pd(load, chosen, one.held_s, token_s, device)
        ttft_s, cloud_s = float(np.median(answers.ttft_s)), float(answers.cloud_s.mean())
        row = {"system": system, "live_ttft_s": live.ttft_s[system], "simulated_ttft_s": ttft_s}
        rows.append(row | {"live_cloud_s": live.cloud_s[system], "simulated_cloud_s": cloud_s})
    table = pd.DataFrame(rows)
    for what in ("ttft", "cloud"):
        error = 100 * (table[f"simulated_{what}_s"] / table[f"live_{what}_s"] - 1)
        table[f"{what}_error_percent"] = error.replace([np.inf, -np.inf], np.nan)
    return table[["system", *(column for column in HEADERS if column in table)]]


def one_answer(measured: Measured) -> pd.DataFrame:
    """The tokens of one answer of P/D-Device: one that the device took over at first try, if there is any."""
    tokens = measured["tokens"][measured["tokens"].policy == "P/D-Device"]
    once = [
        request
        for request, part in tokens.groupby("request")
        if part.source.nunique() > 1 and part.source.ne(part.source.shift()).sum() == 2
    ]
    return tokens[tokens.request == (once or tokens.request.tolist())[-1]]


def events(tokens: pd.DataFrame) -> pd.DataFrame:
    """When each token was generated, and when it was released: columns event, token, seconds."""
    generated = tokens.source.map({"server": EVENTS[0], "device": EVENTS[1]})
    return pd.concat(
        [
            pd.DataFrame({"event": generated, "token": tokens.token, "seconds": tokens.generated_s}),
            pd.DataFrame({"event": EVENTS[2], "token": tokens.token, "seconds": tokens.released_s}),
        ],
        ignore_index=True,
    )
