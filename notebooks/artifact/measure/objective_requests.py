"""Requests with objectives, each answered by the pair (p, m) that is chosen for it, one after the other.

Requests arrive by a Poisson process. The time in which none is there is not waited for: a request starts when it
arrives or when the one before has its answer, whichever is later, and these times follow from the measured ones.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from artifact.measure.objective_answers import Asked, kept
from disco_core.checks import Floats, Ints
from disco_core.endpoints.base import Prefix
from disco_core.errors import InputError
from disco_core.systems.compression import Frequencies
from disco_core.systems.elastic import Classifier, ElasticEndpoint, LatencyModel, Level, Objective, Pair
from disco_core.systems.elastic.decision import WHOLE, features

IN_TRIALS = 0.95  # share of its own trials in which the whole model keeps the latency that objectives are relative to


@dataclass(frozen=True)
class Decider:
    """Chooses a pair for each request: by the classifier, or without one the heaviest that meets the objective."""

    frequencies: Frequencies
    latency: LatencyModel
    classifier: Classifier | None = None

    def pair(self, scores: Floats, unknown: float, objective: Objective, protected: int) -> Pair:
        """The pair for a prompt with these scores and share of unknown words; the lightest if none is feasible."""
        try:
            allowed = self.latency.feasible(scores.size, objective, protected)
        except InputError:  # no pair meets the objective, so the one that misses it least
            return self.latency.pairs[0]
        if self.classifier is None:
            return allowed[-1]
        return self.classifier.choose(features(scores, unknown, objective), allowed)


class Served(ElasticEndpoint):
    """An endpoint with all levels in memory; the seed of a request says which of `wanted` answers it."""

    def __init__(self, levels: Mapping[int, Level], context: int) -> None:
        self.wanted: list[int] = []
        super().__init__(levels, lambda prefix: self.wanted[prefix.seed or 0], n_ctx=context)

    async def answer(self, m: int, ids: Sequence[int], tokens: int) -> list[float]:
        """Seconds from now to each token of a level's answer; to its end alone if it ends before its first token."""
        start, times = time.perf_counter(), list[float]()
        self.wanted.append(m)
        async with aclosing(self.generate(Prefix([*ids], (), tokens, len(self.wanted) - 1))) as generated:
            async for _ in generated:
                times.append(time.perf_counter() - start)
        return times or [time.perf_counter() - start]

    async def trial(self, m: int, ids: Sequence[int], tokens: int) -> dict[str, float]:
        """TTFT and mean time between tokens of a level's answer."""
        times = await self.answer(m, ids, tokens)
        return {"ttft_s": times[0], "tpot_s": tpot(times)}

    async def decided(self, decider: Decider, asked: Asked, objective: Objective, tokens: int) -> dict[str, Any]:
        """A request with all that it needs: scores, decision, compression and answer; times from its start."""
        start = time.perf_counter()
        scores, unknown = decider.frequencies.scores(asked.ids), decider.frequencies.unknown(asked.ids)
        scored = time.perf_counter()
        pair = decider.pair(scores, unknown, objective, int(asked.protected.sum()))
        decided = time.perf_counter()
        ids = asked.ids if pair.p == 1 else kept(asked, pair.p, scores)
        compressed = time.perf_counter()
        before_s = compressed - start
        met = decider.latency.meets([scores.size], objective, int(asked.protected.sum()))
        times = await self.answer(pair.m, ids, tokens)
        return {
            "p": pair.p,
            "m": pair.m,
            "kept": len(ids),
            "feasible": int(np.logical_and(*met).any()),
            "scoring_s": scored - start + compressed - decided,
            "decision_s": decided - scored,
            "ttft_s": before_s + times[0],
            "tokens": len(times),
            "tpot_s": tpot(times),
            "service_s": time.perf_counter() - start,
        }


def tpot(times: Sequence[float]) -> float:
    """Mean seconds between tokens; NaN for fewer than two."""
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else float("nan")


def request_counts(objectives: int, requests: int, alpha: float) -> Ints:
    """`Num(i) ~ e^{alpha i}`: requests with each objective, in all `requests`; shape (objectives,).

    Objectives are listed with the tightest last, from which i counts: the larger alpha, the more requests may wait.

    >>> request_counts(3, 10, 0.7).tolist()
    [6, 3, 1]
    """
    share = np.exp(alpha * np.arange(objectives)[::-1])
    exact = requests * share / share.sum()
    found: Ints = np.floor(exact).astype(np.int64)
    left = requests - int(found.sum())
    found[np.argsort(found - exact, kind="stable")[:left]] += 1  # those of which the largest part was cut
    return found


def trace(
    asked: Sequence[Asked], objectives: Sequence[Objective], requests: int, alpha: float, rng: np.random.Generator
) -> list[tuple[Asked, Objective]]:
    """Requests in a random order: a prompt drawn for each, and objectives as `request_counts` has them."""
    each = rng.permutation(np.repeat(np.arange(len(objectives)), request_counts(len(objectives), requests, alpha)))
    drawn = rng.integers(len(asked), size=requests)
    return [(asked[k], objectives[i]) for k, i in zip(drawn.tolist(), each.tolist(), strict=True)]


def queued(rows: pd.DataFrame, utilisation: float, rng: np.random.Generator) -> pd.DataFrame:
    """Requests of one trace with arrival_s, start_s, and queued_ttft_s, which counts from the arrival.

    The rate of arrivals is such that the answers take the share `utilisation` of the time.
    """
    gaps = rng.exponential(rows.service_s.mean() / utilisation, len(rows))
    arrival, start, free = np.cumsum(gaps), [], 0.0
    for at, service_s in zip(arrival, rows.service_s, strict=True):
        start.append(max(at, free))
        free = start[-1] + service_s
    table = rows.assign(arrival_s=arrival, start_s=start)
    return table.assign(queued_ttft_s=table.start_s + table.ttft_s - table.arrival_s)


def whole_factors(trials: pd.DataFrame, latency: LatencyModel) -> tuple[float, float]:
    """The most, in the share IN_TRIALS of its trials, that the whole model's TTFT and TPOT are of the fitted ones."""
    profile = latency.levels[WHOLE]
    first = trials.ttft_s / profile.ttft(trials.prompt_tokens.to_numpy(np.int64))
    token = (trials.tpot_s * profile.decode_rate).dropna()
    return _kept_in_trials(first), _kept_in_trials(token)


def _kept_in_trials(ratios: pd.Series) -> float:
    return float(np.quantile(ratios, IN_TRIALS, method="inverted_cdf"))


def judged(rows: pd.DataFrame, trials: pd.DataFrame, latency: LatencyModel) -> pd.DataFrame:
    """Requests with whole_ttft_s and whole_tpot_s, what the whole model keeps, and met_ttft and met_tpot, 0 or 1.

    An answer without a time between tokens misses none.
    """
    first, token = whole_factors(trials, latency)
    profile = latency.levels[WHOLE]
    table = rows.assign(
        whole_ttft_s=first * profile.ttft(rows.prompt_tokens.to_numpy(np.int64)),
        whole_tpot_s=token / profile.decode_rate,
    )
    return table.assign(
        met_ttft=(table.ttft_s <= table.ttft * table.whole_ttft_s).astype(int),
        met_tpot=(~(table.tpot_s > table.tpot * table.whole_tpot_s)).astype(int),
    )
