"""Policies that choose (p, m) for each question, compared by looking up which answers were right.

A policy is a function of the test questions, of the mask of pairs that keep to the objective, and of the objective.
It returns the index of a pair for each question. The TTFT of its pairs includes scoring, decision and switching only
as far as the policy uses them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from artifact.elastic.labels import LIGHTEST_RIGHT, Bools, Outcomes, labels, train_on, train_right
from artifact.errors import ArtifactError
from disco_core.checks import Ints
from disco_core.systems.elastic.decision import WHOLE, Classifier, LatencyModel, Objective, Pair

Policy = Callable[[Outcomes, Bools, Objective], Ints]

WHOLE_ALWAYS, PROMPT_ONLY, MODEL_ONLY = "whole model and prompt", "prompt only", "model only"
RANDOM, FIXED, ORACLE = "random feasible", "best fixed (p, m)", "oracle"
OURS, LIKELIEST = "classifier of labels", "most likely right"


def whole(outcomes: Outcomes, meets: Bools, objective: Objective) -> Ints:
    """The whole model with the whole prompt, whatever the objective."""
    return np.full(len(outcomes.tokens), _index(outcomes, Pair(1.0, WHOLE)))


def prompt_only(outcomes: Outcomes, meets: Bools, objective: Objective) -> Ints:
    """The whole model with a shorter prompt: the largest p that keeps to TTFT, and to TPOT if any does."""
    return _heaviest(meets, [pair.m == WHOLE for pair in outcomes.pairs])


def model_only(outcomes: Outcomes, meets: Bools, objective: Objective) -> Ints:
    """The whole prompt with a smaller model: the largest m that keeps to TTFT and TPOT."""
    return _heaviest(meets, [pair.p == 1 for pair in outcomes.pairs])


def random_feasible(rng: np.random.Generator) -> Policy:
    """One of the feasible pairs, all with the same probability."""

    def choose(outcomes: Outcomes, meets: Bools, objective: Objective) -> Ints:
        feasible = np.logical_and(*meets)
        drawn: Ints = np.where(feasible, rng.random(feasible.shape), -1.0).argmax(1)
        return drawn

    return choose


def best_fixed(calibration: Outcomes) -> Policy:
    """The pair with which most calibration questions are right, of those feasible; the lightest of equal ones.

    For each objective it is one pair, but for questions of a length at which that pair is not feasible.
    """

    def choose(outcomes: Outcomes, meets: Bools, objective: Objective) -> Ints:
        _check_pairs(calibration, outcomes)
        best: Ints = np.where(np.logical_and(*meets), calibration.right.mean(0), -1.0).argmax(1)
        return best

    return choose


def oracle(outcomes: Outcomes, meets: Bools, objective: Objective) -> Ints:
    """The lightest feasible pair that is right, which nobody knows beforehand; if none is, the heaviest feasible."""
    return labels(outcomes, np.logical_and(*meets))


def classified(classifier: Classifier) -> Policy:
    """What a classifier chooses of the feasible pairs."""

    def choose(outcomes: Outcomes, meets: Bools, objective: Objective) -> Ints:
        pairs = outcomes.pairs
        rows = zip(outcomes.with_objective(objective), np.logical_and(*meets), strict=True)
        chosen = [classifier.choose(row, [pairs[i] for i in np.flatnonzero(allowed)]) for row, allowed in rows]
        return np.array([pairs.index(pair) for pair in chosen], np.int64)

    return choose


def compare(
    calibration: Outcomes,
    test: Outcomes,
    latency: LatencyModel,
    objectives: Sequence[Objective],
    *,
    rng: np.random.Generator,
    rule: str = LIGHTEST_RIGHT,
) -> pd.DataFrame:
    """Every policy on the test questions of each objective.

    ttft, tpot, policy    the objective, and the policy's name
    questions, left_out   test questions, and those left out since no pair is feasible for them, all costs paid
    met, accuracy         shares of the questions whose objective is kept, and whose answer is right; NaN of none
    p, m                  means of what was chosen; m in percent

    ArtifactError if a question is in both sets, or their pairs differ.
    """
    _check_pairs(calibration, test)
    both = sorted({*map(str, calibration.questions)} & {*map(str, test.questions)})
    if both:
        raise ArtifactError(f"calibration and test share {len(both)} questions, such as {both[0]!r:.60}")
    scored = replace(latency, decision_s=0.0)
    bare = replace(scored, scoring_s=(0.0, 0.0))
    policies: dict[str, tuple[Policy, LatencyModel]] = {
        WHOLE_ALWAYS: (whole, replace(bare, switching_s=0.0)),
        PROMPT_ONLY: (prompt_only, replace(scored, switching_s=0.0)),
        MODEL_ONLY: (model_only, bare),
        RANDOM: (random_feasible(rng), scored),
        FIXED: (best_fixed(calibration), scored),
        OURS: (classified(train_on(calibration, latency, objectives, rule)), latency),
        LIKELIEST: (classified(train_right(calibration)), latency),
        ORACLE: (oracle, latency),
    }
    rows = []
    for objective in objectives:
        possible: Bools = np.any(np.logical_and(*test.meets(latency, objective)), axis=1)
        asked = test.rows(possible)
        for name, (policy, costs) in policies.items():
            about = {"ttft": objective.ttft, "tpot": objective.tpot, "policy": name}
            about |= {"questions": len(possible), "left_out": int((~possible).sum())}
            meets = test.meets(costs, objective)[:, possible]
            rows.append(about | summary(asked, meets, policy(asked, meets, objective)))
    return pd.DataFrame(rows)


def summary(outcomes: Outcomes, meets: Bools, chosen: Ints) -> dict[str, float]:
    """The columns met, accuracy, p and m of `compare`, for the pair chosen for each question."""
    if not len(chosen):
        return dict.fromkeys(("met", "accuracy", "p", "m"), float("nan"))
    each = np.arange(len(chosen))
    pairs = np.array(outcomes.pairs)[chosen]
    return {
        "met": float(np.logical_and(*meets)[each, chosen].mean()),
        "accuracy": float(outcomes.right[each, chosen].mean()),
        "p": float(pairs[:, 0].mean()),
        "m": float(pairs[:, 1].mean()),
    }


def _heaviest(meets: Bools, among: Sequence[bool]) -> Ints:
    """Of the pairs in `among` the heaviest of those that keep to the most of TTFT and TPOT."""
    kept = np.where(among, meets[0].astype(int) + meets[1], -1)
    heaviest: Ints = kept.shape[1] - 1 - kept[:, ::-1].argmax(1)
    return heaviest


def _index(outcomes: Outcomes, pair: Pair) -> int:
    if pair not in outcomes.pairs:
        raise ArtifactError(f"the table of outcomes needs the pair {tuple(pair)}")
    return outcomes.pairs.index(pair)


def _check_pairs(calibration: Outcomes, test: Outcomes) -> None:
    if calibration.pairs != test.pairs:
        raise ArtifactError("calibration and test questions must have been tried with the same pairs (p, m)")
