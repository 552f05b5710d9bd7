"""Automatic measures of the effect of a hand-over on the text, each with a non-inferiority margin.

A migrated answer is compared with the same answer without migration: both begin with the same tokens. Two controls
show whether the measures detect a loss: an answer that *starts over* at the hand-over point, as if the target had not
received the first half, and one that *goes on with another* prompt's text.

    chrF         of the text after the hand-over point, against other unmigrated samples of both endpoints (points)
    length       words of the answer (%; a longer answer is a loss as well)
    repetition   answers that repeat three words, or double one word, at the hand-over point (percentage points)
    perplexity   of the text after the hand-over point, under a model that generated neither half (%), if installed
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from disco_core.checks import Floats

MARGINS = {"chrF": 3.0, "length": 15.0, "repetition": 5.0, "perplexity": 25.0}
UNITS = {"chrF": "points", "length": "%", "repetition": "points", "perplexity": "%"}
ALONE, MIGRATED, STARTS_OVER, ANOTHER = "alone", "migrated", "starts over", "goes on with another"
KEYS = ["source", "prompt", "sample", "at"]  # of an unmigrated answer, cut after `at` tokens
SEAM_WORDS = 3

_COLUMN = {"chrF": "chrF", "length": "words", "repetition": "repeats", "perplexity": "nats"}

Draws = NDArray[np.int64]


@lru_cache(maxsize=1 << 14)
def chrf(text: str, reference: str) -> float:
    """chrF2 (character n-grams up to 6) of a text against one reference, 0 to 100, computed by sacreBLEU."""
    return float(_sacrebleu().sentence_score(text, [reference]).score)


def repeats(before: str, after: str, n: int = SEAM_WORDS) -> bool:
    """Whether a text repeats itself at the hand-over point.

    True if the first word that ends after that point equals the word before it, or is part of an n-gram that occurs
    earlier in the text. Words are letters and digits, in lower case.

    >>> repeats("The sky is blue because", " the sky is blue because"), repeats("It is the", " the end")
    (True, True)
    >>> repeats("The sky is blue because", " air scatters light"), repeats("He re", "peats it")
    (False, False)
    """
    found = list(re.finditer(r"\w+", (before + after).lower()))
    words = [one[0] for one in found]
    k = next((i for i, one in enumerate(found) if one.end() > len(before)), None)
    if not k:  # no word after the hand-over point, or none before it
        return False
    grams = [words[i : i + n] for i in range(len(words) - n + 1)]
    return words[k] == words[k - 1] or any(
        grams[first] in grams[:first] for first in range(max(k - n + 1, 0), min(k + 1, len(grams)))
    )


def compare(answers: pd.DataFrame, nats: pd.DataFrame) -> pd.DataFrame:
    """One row for each hand-over and each control, compared with the same answer without migration.

    answers   rows of (source, target, moved, prompt, sample, at, before, after): `moved` is "alone" for unmigrated
              answers, which have a row for each `at`; otherwise "ids" or "text", the form in which they migrated
    nats      rows of (target, moved, nats and `KEYS`): mean -log p of a token after `at`, under another model

    Columns: the keys of the answer, `kind` ("migrated" or a control), each measure of the answer and, with `_alone`,
    of the unmigrated one. NaN if undefined: chrF if no other sample of either endpoint is longer than `at` tokens.
    """
    alone = {
        tuple(key): (before, after)
        for *key, before, after in answers.loc[answers["moved"] == ALONE, [*KEYS, "before", "after"]].itertuples(
            index=False
        )
    }
    known = {tuple(key): told for *key, told in nats[[*KEYS, "target", "moved", "nats"]].itertuples(index=False)}
    rows, samples = list[dict[str, Any]](), answers["sample"].unique()
    for kind, moved in _kinds(answers):
        names = [*KEYS, "target", "moved"]
        for *key, before, after in moved[[*names, "before", "after"]].itertuples(index=False):
            source, prompt, sample, at, *_ = key
            own = source, prompt, sample, at
            others = [alone.get((end, prompt, n, at)) for end in (source, key[4]) for n in samples]
            row = dict(zip(names, key, strict=True)) | {"kind": kind}
            for which, text in {"": (before, after), "_alone": alone[own]}.items():
                scores = [chrf(text[1], other[1]) for other in others if other and other is not alone[own]]
                row[f"chrF{which}"] = np.mean(scores) if scores else np.nan
                row[f"words{which}"] = len("".join(text).split())
                row[f"repeats{which}"] = repeats(*text)
            row["nats"] = known.get(tuple(key), np.nan) if kind == MIGRATED else np.nan
            row["nats_alone"] = known.get((*own, source, ALONE), np.nan)
            rows.append(row)
    return pd.DataFrame(rows)


def drawn_prompts(prompts: int, replicates: int, seed: int) -> Draws:
    """Drawn positions of prompts, shape (replicates, prompts); the same for all comparisons."""
    return np.random.default_rng([seed, 17]).integers(prompts, size=(replicates, prompts))


def band(rows: pd.DataFrame, measure: str, draws: Draws, prompts: list[str]) -> tuple[float, float, float]:
    """The loss by one measure, positive if the migrated answer is worse, and the limits of its 95 % band.

    A paired bootstrap over prompts: a replicate is a row of `draws`, positions in `prompts`, with all answers to each
    of them. NaN if nothing was measured. The sign of the loss in length: positive is longer.
    """
    above, below = _parts(rows, measure)
    return ratio_band(rows["prompt"], above, below, draws, prompts, _SCALES[measure])


def level(rows: pd.DataFrame, column: str, draws: Draws, prompts: list[str]) -> tuple[float, float, float]:
    """The mean of one column, and the limits of its 95 % band, from the same bootstrap as `band`."""
    values = rows[column].to_numpy(float)
    known = np.isfinite(values)
    return ratio_band(rows["prompt"], np.where(known, values, 0.0), known.astype(float), draws, prompts)


def ratio_band(
    prompt: "pd.Series[str]", above: Floats, below: Floats, draws: Draws, prompts: list[str], scale: Any = None
) -> tuple[float, float, float]:
    """`sum(above) / sum(below)`, and the limits of its 95 % band over drawn prompts; NaN if all of `below` is 0."""
    if not below.any():
        return np.nan, np.nan, np.nan
    place = pd.Index(prompts).get_indexer(prompt)
    sums = [np.bincount(place, weights=one, minlength=len(prompts)) for one in (above, below)]
    drawn = sums[0][draws].sum(axis=1) / np.maximum(sums[1][draws].sum(axis=1), 1e-9)
    found = np.array([sums[0].sum() / sums[1].sum(), *np.quantile(drawn, [0.025, 0.975])])
    value, low, high = found if scale is None else scale(found)
    return float(value), float(low), float(high)


def losses(rows: pd.DataFrame, draws: Draws, prompts: list[str]) -> pd.DataFrame:
    """Each measure: unmigrated and migrated mean, the loss with its band, and its non-inferiority margin.

    `worst` and `least` are the largest and the smallest loss within the band, divided by the margin; a change of
    length in either direction is a loss.
    """
    table = []
    for measure, margin in MARGINS.items():
        loss, low, high = band(rows, measure, draws, prompts)
        if np.isnan(loss):
            continue
        name, both = _COLUMN[measure], rows[[_COLUMN[measure], f"{_COLUMN[measure]}_alone"]].dropna()
        means = [float(both[one].mean()) for one in (f"{name}_alone", name)]
        means = [{"repetition": 100 * one, "perplexity": float(np.exp(one))}.get(measure, one) for one in means]
        row = {"measure": measure, "unmigrated": means[0], "moved": means[1], "loss": loss, "low": low, "high": high}
        row |= {"unit": UNITS[measure], "margin": margin, "answers": len(both)}
        most = max(-low, high) if measure == "length" else high
        least = max(low, -high) if measure == "length" else low
        table.append(row | {"worst": most / margin, "least": least / margin})
    return pd.DataFrame(table)


def groups(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Hand-overs: all, by source and by form; perplexity, measured for few answers, is in the first group only."""
    yield "all", rows
    for column, word in (("source", "from the {}"), ("moved", "as {}")):
        for value, part in rows.groupby(column):
            yield word.format(value), part.assign(nats=np.nan)


def _kinds(answers: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Migrated answers, and the two controls made from them."""
    moved, alone = answers[answers["moved"] != ALONE], answers[answers["moved"] == ALONE]
    yield MIGRATED, moved
    said = (
        alone[["source", "prompt", "sample"]].assign(after=" " + alone["before"] + alone["after"]).drop_duplicates()
    )
    own = said.rename(columns={"source": "target"})
    yield STARTS_OVER, moved.drop(columns="after").merge(own, on=["target", "prompt", "sample"])
    alike = moved.groupby(["source", "target", "moved", "at"], sort=False)["after"]
    yield ANOTHER, moved.assign(after=alike.transform(lambda after: np.roll(after, 1)))  # of the previous prompt


def _parts(rows: pd.DataFrame, measure: str) -> tuple[Floats, Floats]:
    """Numerator and denominator of each row."""
    name = _COLUMN[measure]
    own, alone = rows[name].to_numpy(float), rows[f"{name}_alone"].to_numpy(float)
    change = alone - own if measure == "chrF" else own - alone
    known = np.isfinite(change)
    return np.where(known, change, 0.0), np.where(known, alone, 0.0) if measure == "length" else known.astype(float)


_SCALES: dict[str, Any] = {
    "chrF": None,
    "length": lambda ratio: 100 * ratio,
    "repetition": lambda share: 100 * share,
    "perplexity": lambda nats: 100 * np.expm1(nats),
}


@lru_cache(maxsize=1)
def _sacrebleu() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
