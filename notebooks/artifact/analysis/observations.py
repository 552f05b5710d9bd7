"""What the public traces show: TTFT, lengths, what tokens cost a phone, and which endpoint is constrained."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from artifact.data import traces
from artifact.data.traces import Service
from disco_core.cost import CostModel
from disco_core.errors import ConstraintError

DATASETS = {
    "alpaca": "Alpaca",
    "mt-bench": "MT-Bench",
    "arena-hard": "Arena-Hard",
    "alpaca-eval/Meta-Llama-3-70B-Instruct": "AlpacaEval, Llama 3 70B",
    "azure-conv": "Azure, conversation",
    "azure-code": "Azure, code",
}
DATASETS_OF = {
    "prompt": ("alpaca", "mt-bench", "arena-hard", "azure-conv", "azure-code"),
    "output": ("alpaca", "alpaca-eval/Meta-Llama-3-70B-Instruct", "azure-conv", "azure-code"),
}
PHONES = {  # names of `data/phones.csv`, as they are written elsewhere
    "mate40pro": "Mate 40 Pro",
    "meizu21": "Meizu 21",
    "v30pro": "V30 Pro",
    "xiaomi15pro": "Xiaomi 15 Pro",
    "mnn": "MNN",
    "ours": "LLM-Profiler's",
    "llama3_2-1b": "Llama 3.2 1B",
    "qwen2_5-1_5b": "Qwen2.5 1.5B",
}
_LEVELS = np.concatenate([np.arange(1, 100) / 100, [0.995, 0.999, 1.0]])
_POINTS = {"P50": 0.5, "P90": 0.9, "P95": 0.95, "P99": 0.99, "max": 1.0}
_RATES = 10.0 ** np.arange(-9, -2, 0.01)  # dollars per joule


def distributions(services: Mapping[str, Service]) -> pd.DataFrame:
    """F of every service: `ttft_s` at each `level`."""
    parts = [
        pd.DataFrame({"service": name, "level": _LEVELS, "ttft_s": s.ttft.quantile(_LEVELS)})
        for name, s in services.items()
    ]
    return pd.concat(parts, ignore_index=True)


def quantiles(services: Mapping[str, Service]) -> pd.DataFrame:
    """Requests, mean and quantiles of TTFT in seconds of every service, and the ratio of P99 to the median."""
    rows = [
        {"service": name, "n": s.n, "mean": s.ttft.mean}
        | {point: float(s.ttft.quantile(level)) for point, level in _POINTS.items()}
        for name, s in services.items()
    ]
    return pd.DataFrame(rows).assign(**{"P99 / P50": lambda table: table["P99"] / table["P50"]})


def lengths(source: str) -> pd.DataFrame:
    """Share of requests of at most so many tokens: kind ("prompt" or "output"), dataset, tokens, share."""
    parts = []
    for kind, names in DATASETS_OF.items():
        for name in names:
            its = traces.lengths(name, kind, source)
            share = np.cumsum(its.counts) / its.counts.sum()
            columns = {"kind": kind, "dataset": DATASETS[name], "tokens": its.tokens, "share": share}
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def phone_energy(phones: pd.DataFrame) -> pd.DataFrame:
    """Speed and energy per token of every phone, engine and model, median over prompt lengths."""
    keys, values = ["device", "engine", "model"], list(phones.columns[4:])
    return phones.replace({"ours": PHONES["ours"]}).groupby(keys, as_index=False)[values].median()


def constrained(service: Service, phones: pd.DataFrame, rate: float) -> str:
    """The constrained endpoint for the median phone at an exchange rate in dollars per joule, or "neither"."""
    prefill_j, decode_j = (float(phones[f"{what}_mj_per_tok"].median()) / 1000 for what in ("prefill", "decode"))
    try:
        prices = CostModel.from_energy(service.price_in, service.price_out, prefill_j, decode_j, rate)
        return prices.constraint.value
    except ConstraintError:
        return "neither"


def limits(services: Mapping[str, Service], phones: pd.DataFrame) -> pd.DataFrame:
    """Prices of every service, and the exchange rates at which the constrained endpoint changes."""
    rows = []
    for name, one in services.items():
        endpoint = np.array([constrained(one, phones, rate) for rate in _RATES])
        rows.append(
            {
                "service": name,
                "prompt ($/1M)": 1e6 * one.price_in,
                "output ($/1M)": 1e6 * one.price_out,
                "server constrained up to ($/MJ)": 1e6 * _RATES[endpoint == "server"].max(initial=0.0),
                "device constrained from ($/MJ)": 1e6 * _RATES[endpoint == "device"].min(initial=np.inf),
            }
        )
    return pd.DataFrame(rows)
