"""The decision of ElastiLM (arXiv 2409.09071): the prompt ratio p and the model ratio m of each request.

A request has an objective (zeta_TTFT, zeta_TPOT): TTFT and TPOT as ratios to those of the whole model with the whole
prompt. `LatencyModel` says which pairs (p, m) meet it, from this device's measured latencies rather than from the
paper's `p m <= zeta_TTFT and m <= zeta_TPOT`. `Classifier` chooses one of them by cheap features of the prompt; it is
trained offline, and is only arrays here. Of two pairs the lighter one has the lower p m, or the same p m and the
lower m.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.errors import InputError
from disco_core.latency import DeviceProfile
from disco_core.systems.compression import kept_tokens
from disco_core.systems.model_arrays import load_arrays, save_arrays

SHARES = tuple(tenths / 10 for tenths in range(1, 11))
WHOLE = 100
FEATURES = ("log length", "mean score", "spread of scores", "unknown words", "zeta_TTFT", "zeta_TPOT")
_ARRAYS = ("pairs", "weights", "biases", "mean", "scale")
_ROUNDING = 1e-9  # of a ratio that equals the objective but for its rounding


class Pair(NamedTuple):
    """The share p of the prompt's tokens that is kept, and the level m in percent."""

    p: float
    m: int


def weight(pair: Pair) -> tuple[float, int]:
    """The sort key that puts lighter pairs first: p m without its rounding, then m."""
    return round(pair.p * pair.m, 6), pair.m


@dataclass(frozen=True)
class Objective:
    """The largest TTFT and TPOT allowed, as ratios to the whole model's (zeta_TTFT, zeta_TPOT), above 0."""

    ttft: float
    tpot: float

    def __post_init__(self) -> None:
        for name in ("ttft", "tpot"):
            object.__setattr__(self, name, checks.positive(getattr(self, name), f"objective: {name}"))

    def __str__(self) -> str:
        return f"<{self.ttft:g}, {self.tpot:g}>"


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """Latency of every pair (p, m) at every prompt length, on one device.

    levels        profile of each level by its percent; 100 is the whole model
    scoring_s     (a, b): seconds `a + b l` to score a prompt of l tokens
    decision_s    seconds to choose a pair
    switching_s   seconds to change the level
    shares        the values of p, in (0, 1]; 1 is always one of them

    TTFT of a pair is the prefill of the tokens kept and the seconds above, TPOT that of the level.
    """

    levels: Mapping[int, DeviceProfile]
    scoring_s: tuple[float, float] = (0.0, 0.0)
    decision_s: float = 0.0
    switching_s: float = 0.0
    shares: tuple[float, ...] = SHARES

    def __post_init__(self) -> None:
        if (
            not all(isinstance(profile, DeviceProfile) for profile in self.levels.values())
            or WHOLE not in self.levels
        ):
            raise InputError(f"levels must be profiles by percent, {WHOLE} among them, got {self.levels!r:.80}")
        if not all(0 < p <= 1 for p in self.shares):
            raise InputError(f"shares must lie in (0, 1], got {self.shares!r:.80}")
        for name in ("scoring_s", "decision_s", "switching_s"):
            checks.seconds(getattr(self, name), name)

    @classmethod
    def fit(
        cls, percent: ArrayLike, prompt_tokens: ArrayLike, ttft_s: ArrayLike, tpot_s: ArrayLike, **others: Any
    ) -> "LatencyModel":
        """Least squares over measured rows, each array of shape (rows,); `others` are further fields.

        Of each level TTFT is `a + b l`, as `DeviceProfile.fit` has it, and TPOT the mean. InputError, which names the
        level, if its rows do not determine them.
        """
        level, length, first_s, token_s = (
            checks.numbers(array, name)
            for array, name in (
                (percent, "percent"),
                (prompt_tokens, "prompt_tokens"),
                (ttft_s, "ttft_s"),
                (tpot_s, "tpot_s"),
            )
        )
        if not level.shape == length.shape == first_s.shape == token_s.shape == (level.size,):
            raise InputError(f"percent, prompt_tokens, ttft_s and tpot_s must match, got {level.size} percents")
        levels = {}
        for m in sorted({int(one) for one in level}, reverse=True):
            rows = level == m
            try:
                rate = 1 / checks.positive(token_s[rows].mean(), "mean tpot_s")
                levels[m] = DeviceProfile.fit(length[rows], first_s[rows], rate)
            except InputError as error:
                raise InputError(f"level {m}: {error}") from None
        return cls(levels, **others)

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs, the lightest first."""
        shares = {*self.shares, 1.0}
        return tuple(sorted((Pair(float(p), m) for p in shares for m in self.levels), key=weight))

    def seconds(self, prompt_tokens: ArrayLike, pair: Pair, protected: ArrayLike = 0) -> tuple[Floats, Floats]:
        """TTFT and TPOT of a pair in seconds, each of the shape of the lengths; `protected` tokens are always kept.

        InputError for a level that is unknown.
        """
        if pair.m not in self.levels:
            raise InputError(f"level {pair.m!r:.40} is unknown; the levels are {_listed(self.levels)} %")
        length = np.asarray(prompt_tokens)
        profile = self.levels[pair.m]
        first_s = profile.ttft(np.maximum(kept_tokens(length, pair.p), protected)) + self._overhead_s(length)
        return first_s, np.full(length.shape, 1 / profile.decode_rate)

    def _overhead_s(self, length: Ints) -> Floats:
        """Seconds of scoring, decision and switching, for prompts of each length."""
        fixed_s, token_s = self.scoring_s
        by_length: Floats = token_s * length.astype(np.float64)
        return by_length + (fixed_s + self.decision_s + self.switching_s)

    @cached_property
    def _by_pair(self) -> Floats:
        """p, startup, prefill rate and decode rate of each pair, shape (4, pairs)."""
        profiles = [self.levels[pair.m] for pair in self.pairs]
        rows = [(one.startup, one.prefill_rate, one.decode_rate) for one in profiles]
        return np.column_stack([[pair.p for pair in self.pairs], np.array(rows)]).T

    def ratios(self, prompt_tokens: ArrayLike, protected: ArrayLike = 0) -> tuple[Floats, Floats]:
        """TTFT and TPOT of all pairs as ratios to the whole model's, each of shape (n, pairs)."""
        length, safe = checks.tokens(np.atleast_1d(prompt_tokens), "prompt_tokens"), np.asarray(protected)
        if np.any((safe < 0) | (safe > length)):
            raise InputError(f"protected must be from 0 to the prompt's tokens, got {protected!r:.40}")
        p, startup, prefill_rate, decode_rate = self._by_pair
        kept = np.maximum(kept_tokens(length[:, None], p), np.reshape(safe, (-1, 1)))
        first_s = kept / prefill_rate + startup + self._overhead_s(length)[:, None]
        whole = self.levels[WHOLE]
        first = first_s / whole.ttft(length)[:, None]
        return first, np.broadcast_to(whole.decode_rate / decode_rate, first.shape)

    def meets(self, prompt_tokens: ArrayLike, objective: Objective, protected: ArrayLike = 0) -> NDArray[np.bool_]:
        """Which pairs keep to an objective's TTFT, and which to its TPOT, for n prompts; shape (2, n, pairs).

        The whole model with the whole prompt meets every objective of at least <1, 1>, since it needs no decision.
        """
        limit = 1 + _ROUNDING
        first, token = self.ratios(prompt_tokens, protected)
        met = np.stack([first <= objective.ttft * limit, token <= objective.tpot * limit])
        met[:, :, self.pairs.index(Pair(1.0, WHOLE))] |= min(objective.ttft, objective.tpot) >= 1
        return met

    def feasible(self, l: int, objective: Objective, protected: int = 0) -> list[Pair]:
        """The pairs that meet an objective for a prompt of l tokens, the lightest first.

        InputError, which names the least ratios there are, if none does.
        """
        (first_met,), (token_met,) = self.meets(checks.count(l, "l"), objective, protected)
        met = first_met & token_met
        if not met.any():
            first, token = (ratio.min() for ratio in self.ratios(l, protected))
            raise InputError(
                f"the objective {objective} cannot be met by any level for a prompt of {l} tokens: the least "
                f"feasible TTFT is {first:.3g} and the least TPOT {token:.3g} of the whole model's"
            )
        return [pair for pair, one in zip(self.pairs, met, strict=True) if one]


def features(scores: Floats, unknown: float, objective: Objective) -> Floats:
    """The features of a request, those of `FEATURES`, shape (6,).

    scores    of the prompt's tokens, from `Frequencies.scores`, shape (l,)
    unknown   share of its words that are unknown, from `Frequencies.unknown`
    """
    prompt = [np.log(scores.size), scores.mean(), scores.std(), unknown]
    return np.array([*prompt, objective.ttft, objective.tpot])


@dataclass(frozen=True, eq=False)
class Classifier:
    """Linear scores of pairs by the features of a request, as logistic regression gives them, as arrays.

    pairs          the classes, between which a multinomial regression decides, or the pairs that one regression of
                   right and wrong answers compares
    weights        shape (classes, features), of features that are shifted and scaled
    biases         shape (classes,)
    mean, scale    of the features it was trained on, each of shape (features,)
    """

    pairs: tuple[Pair, ...]
    weights: Floats
    biases: Floats
    mean: Floats
    scale: Floats

    def __post_init__(self) -> None:
        classes, count = len(self.pairs), np.size(self.mean)
        shapes = [np.shape(getattr(self, name)) for name in _ARRAYS[1:]]
        if not classes or shapes != [(classes, count), (classes,), (count,), (count,)]:
            raise InputError(f"a classifier of {classes} pairs and {count} features has arrays of shapes {shapes}")
        if not all(np.isfinite(getattr(self, name)).all() for name in _ARRAYS[1:]) or np.any(self.scale <= 0):
            raise InputError("a classifier must have finite weights, and scales above 0")

    def scores(self, features: ArrayLike) -> Floats:
        """The logit of each pair, shape (..., classes), for features of shape (..., features)."""
        given = checks.numbers(features, "features")
        if given.shape[-1:] != self.mean.shape:
            raise InputError(f"features must be {self.mean.size} numbers, got shape {given.shape}")
        logits: Floats = (given - self.mean) / self.scale @ self.weights.T + self.biases
        return logits

    def choose(self, features: ArrayLike, allowed: Sequence[Pair]) -> Pair:
        """Of the pairs allowed the one with the highest score; if it knows none of them, the heaviest."""
        if not allowed:
            raise InputError("allowed must have at least one pair")
        score = dict(zip(self.pairs, self.scores(features).tolist(), strict=True))
        known = [pair for pair in allowed if pair in score]
        return max(known, key=score.__getitem__) if known else max(allowed, key=weight)

    def save(self, path: Path | str, parent: Path | str) -> None:
        """Write an npz file that belongs to the model in the file `parent`. Errors of `save_arrays`."""
        save_arrays(path, parent, {name: np.array(getattr(self, name), np.float64) for name in _ARRAYS})

    @classmethod
    def load(
        cls, path: Path | str, parent: Path | str | None = None, levels: Collection[int] | None = None
    ) -> "Classifier":
        """The classifier in a file, if it was trained for the model `parent`, and chooses only from `levels`.

        Errors of `load_arrays`, and InputError for a level that is not one of `levels`.
        """
        found = load_arrays(path, parent, _ARRAYS, "train the classifier again")
        try:
            pairs = tuple(Pair(float(p), int(m)) for p, m in found.pop("pairs"))
            classifier = cls(pairs, **found)
        except (TypeError, ValueError) as error:  # an InputError too
            raise InputError(f"{path} is no classifier ({error}); train the classifier again") from None
        if levels is not None and (unknown := {pair.m for pair in pairs}.difference(levels)):
            here = f"the levels here are {_listed(levels)} %"
            raise InputError(f"{path} chooses level {_listed(unknown)}, which is unknown; {here}")
        return classifier


def _listed(levels: Collection[int]) -> str:
    return ", ".join(map(str, sorted(levels, reverse=True)))
