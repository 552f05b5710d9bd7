"""Policies that choose (p, m) for each question, compared by looking up which answers were right.

A policy is a function of the test questions, of the mask of pairs that keep to the objective, and of the objective.
It returns the index of a pair for each question. The TTFT of its pairs includes scoring, decision and switching only
as far as the policy uses them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from artifact.elastic.labels import LAST_RIGHT, LIGHTEST_RIGHT, Bools, Outcomes, labels, train_on, train_right
from artifact.errors import ArtifactError
from disco_core.checks import Ints
from disco_core.systems.elastic.decision import WHOLE, Classifier, LatencyModel, Objective, Pair

Policy = Callable[[Outcomes, Bools, Objective], Ints]

WHOLE_ALWAYS, PROMPT_ONLY, MODEL_ONLY = "whole model and prompt", "prompt only", "model only"
RANDOM, FIXED, ORACLE = "random feasible", "best fixed (p, m)", "oracle"
PAPER, RELEASED, LIKELIEST = "paper's labels", "released code's labels", "most likely right"
BASELINES = (WHOLE_ALWAYS, PROMPT_ONLY, MODEL_ONLY, RANDOM, FIXED)


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


def choices(
    calibration: Outcomes,
    test: Outcomes,
    latency: LatencyModel,
    objectives: Sequence[Objective],
    *,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """What every policy chooses for each test question and objective, one row each.

    ttft, tpot, policy, question   the objective, and the names of policy and question
    feasible                       whether some pair meets the objective, all costs paid; if not, the rest is NaN
    p, m, met, right               what was chosen, m in percent; 1 if the objective is kept, the answer right, or 0

    ArtifactError if a question is in both sets, or their pairs differ.
    """
    _check_pairs(calibration, test)
    both = sorted({*map(str, calibration.questions)} & {*map(str, test.questions)})
    if both:
        raise ArtifactError(f"calibration and test share {len(both)} questions, such as {both[0]!r:.60}")
    known = _policies(calibration, latency, objectives, rng)
    tables = []
    for objective in objectives:
        possible: Bools = np.any(np.logical_and(*test.meets(latency, objective)), axis=1)
        asked = test.rows(possible)
        for name, (policy, costs) in known.items():
            table = pd.DataFrame({"ttft": objective.ttft, "tpot": objective.tpot, "policy": name}, test.questions)
            table["feasible"] = possible
            meets = test.meets(costs, objective)[:, possible]
            chosen = policy(asked, meets, objective) if possible.any() else np.empty(0, np.int64)
            each = np.arange(len(chosen))
            found = pd.DataFrame([asked.pairs[i] for i in chosen], asked.questions, ["p", "m"], float)
            found["met"] = np.logical_and(*meets)[each, chosen].astype(float)
            found["right"] = asked.right[each, chosen].astype(float)
            tables.append(table.join(found).rename_axis("question").reset_index())
    return pd.concat(tables, ignore_index=True)


def compare(
    calibration: Outcomes,
    test: Outcomes,
    latency: LatencyModel,
    objectives: Sequence[Objective],
    *,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Every policy on the test questions of each objective, from `choices`.

    ttft, tpot, policy    the objective, and the policy's name
    questions, left_out   test questions, and those left out since no pair is feasible for them, all costs paid
    met, accuracy         shares of the questions whose objective is kept, and whose answer is right; NaN of none
    in_time               share of the questions with both
    p, m                  means of what was chosen; m in percent
    """
    rows = choices(calibration, test, latency, objectives, rng=rng)
    rows = rows.assign(in_time=rows.met * rows.right, left_out=~rows.feasible)
    found = rows.groupby(["ttft", "tpot", "policy"], sort=False).agg(
        questions=("question", "size"),
        left_out=("left_out", "sum"),
        met=("met", "mean"),
        accuracy=("right", "mean"),
        in_time=("in_time", "mean"),
        p=("p", "mean"),
        m=("m", "mean"),
    )
    return found.reset_index()


def _policies(
    calibration: Outcomes, latency: LatencyModel, objectives: Sequence[Objective], rng: np.random.Generator
) -> dict[str, tuple[Policy, LatencyModel]]:
    """Every policy by its name, with the latency of what it uses."""
    scored = replace(latency, decision_s=0.0)
    bare = replace(scored, scoring_s=(0.0, 0.0))

    def trained(rule: str) -> tuple[Policy, LatencyModel]:
        return classified(train_on(calibration, latency, objectives, rule)), latency

    return {
        WHOLE_ALWAYS: (whole, replace(bare, switching_s=0.0)),
        PROMPT_ONLY: (prompt_only, replace(scored, switching_s=0.0)),
        MODEL_ONLY: (model_only, bare),
        RANDOM: (random_feasible(rng), scored),
        FIXED: (best_fixed(calibration), scored),
        PAPER: trained(LIGHTEST_RIGHT),
        RELEASED: trained(LAST_RIGHT),
        LIKELIEST: (classified(train_right(calibration)), latency),
        ORACLE: (oracle, latency),
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
