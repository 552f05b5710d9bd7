"""What a token costs at each endpoint, and at which price of energy an endpoint is the constrained one.

Symbols: lambda, the price of a joule in $.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from artifact.analysis import energy
from artifact.data import traces

KINDS = ("prefill", "decode")
MEASURED = "median measured phone"
RANGE: dict[str, Any] = {"estimator": "median", "errorbar": ("pi", 100)}  # over devices, as seaborn takes it
Joules = dict[str, tuple[float, float]]  # by device: J per token of prefill and of decode


def device_joules(tokens: pd.DataFrame, prompt: float, answer: float, *, linear: bool = False) -> Joules:
    """J per token of the paper's devices, whose energy is derived from FLOPs, and of the median measured phone.

    tokens           of `energy.phone_tokens`; their median energy of a FLOP, prefill and decode apart, is what a FLOP
                     costs the paper's devices
    prompt, answer   mean lengths in tokens, which give the mean context of a token
    linear           with one energy of a FLOP for both, as if energy were linear in FLOPs
    """
    models, devices = energy.architectures(), traces.table("devices")
    contexts = {"prefill": (prompt + 1) / 2, "decode": prompt + (answer + 1) / 2}
    per_gflop = tokens["joule"] / tokens["gflop"]
    by_kind = per_gflop.groupby(tokens["token"]).median()
    rate = {kind: float(per_gflop.median() if linear else by_kind[kind]) for kind in KINDS}
    joules: Joules = {}
    for device in devices.itertuples():
        model = models[str(device.model)]
        gflop = [float(model.flops(contexts[kind], decode=kind == "decode")) / 1e9 for kind in KINDS]
        joules[f"{device.device}, {device.model}"] = (rate["prefill"] * gflop[0], rate["decode"] * gflop[1])
    median = tokens.groupby("token")[["joule", "gflop"]].median()
    measured = [float(rate[kind] * median.gflop[kind] if linear else median.joule[kind]) for kind in KINDS]
    return joules | {MEASURED: (measured[0], measured[1])}


def endpoints(
    services: Mapping[str, traces.Service], joules: Joules, electricity: float, prompt: float, answer: float
) -> pd.DataFrame:
    """Price per token of every endpoint: endpoint, kind, source, and a column for each price, with its unit.

    electricity      $ per kWh
    prompt, answer   mean tokens of a request, for the price of 1,000 requests
    """
    rows: list[dict[str, object]] = []
    for (name, service), mark in zip(services.items(), traces.table("services")["price_mark"], strict=True):
        row: dict[str, object] = {"endpoint": name, "kind": "server", "price from": f"public price, {mark}"}
        row |= {"prefill, $/1M": 1e6 * service.price_in, "decode, $/1M": 1e6 * service.price_out}
        rows.append(row)
    per_mj = electricity / 3.6  # $ per MJ: what a million tokens of one joule each cost
    for name, (prefill, decode) in joules.items():
        row = {"endpoint": name, "kind": "device", "price from": "measured" if name == MEASURED else "from FLOPs, R"}
        row |= {"prefill, $/1M": per_mj * prefill, "decode, $/1M": per_mj * decode}
        rows.append(row | {"prefill, mJ": 1e3 * prefill, "decode, mJ": 1e3 * decode})
    table = pd.DataFrame(rows)
    table["$ per 1,000 requests"] = (table["prefill, $/1M"] * prompt + table["decode, $/1M"] * answer) / 1e3
    return table


def long(limits: pd.DataFrame) -> pd.DataFrame:
    """`limits` as seaborn takes it: service, device, lambda, limit and energy (measured, or linear in FLOPs)."""
    of = {"server_up_to": "server constrained below", "device_from": "device constrained above"}
    prefixes = {"": "energy as measured", "linear_": "energy linear in FLOPs"}
    parts = [
        limits[["service", "device"]].assign(**{"lambda": limits[prefix + column], "limit": limit, "energy": title})
        for prefix, title in prefixes.items()
        for column, limit in of.items()
    ]
    return pd.concat(parts, ignore_index=True)


def limits(services: Mapping[str, traces.Service], joules: Joules, linear: Joules) -> pd.DataFrame:
    """lambda up to which the server is the constrained endpoint and from which the device is, for each pair.

    Columns: service, device, server_up_to, device_from; and both as they are if energy is linear in FLOPs.
    """
    rows = []
    for name, service in services.items():
        for device in joules:
            row: dict[str, object] = {"service": name, "device": device}
            for prefix, of in {"": joules, "linear_": linear}.items():
                low, high = energy.constrained_rates(service.price_in, service.price_out, *of[device])
                row |= {f"{prefix}server_up_to": low, f"{prefix}device_from": high}
            rows.append(row)
    return pd.DataFrame(rows)
