"""Training the decision of (p, m): which pair each calibration question should get, and a classifier of these labels.

Whether the answer is right has been tried for every question and pair. For each question and objective the label is
the lightest feasible pair whose answer is right (Yin et al., 2024). Their released code keeps another one, the last
right one that it tries, which `LAST_RIGHT` is.

Where a question has options, some answers are right by chance, and of many pairs a very light one nearly always is.
So these labels say little about what a pair is good for. `train_right` needs no labels: it estimates how likely each
pair is to be right, from all answers together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from artifact.errors import ArtifactError
from disco_core.checks import Floats, Ints
from disco_core.systems.elastic.decision import (
    FEATURES,
    WHOLE,
    Classifier,
    LatencyModel,
    Objective,
    Pair,
    weight,
)

LIGHTEST_RIGHT, LAST_RIGHT = "lightest right", "last right"
PROMPT_FEATURES = FEATURES[:4]  # the others are the objective
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Questions that were answered with every pair (p, m).

    questions   names, shape (n,)
    tokens      of each prompt, shape (n,); `protected`, of these, are always kept
    features    `PROMPT_FEATURES` of each prompt, shape (n, 4)
    pairs       the lightest first
    right       whether the answer is right, shape (n, pairs)
    """

    questions: NDArray[np.object_]
    tokens: Ints
    protected: Ints
    features: Floats
    pairs: tuple[Pair, ...]
    right: Bools

    @classmethod
    def of(cls, answers: pd.DataFrame, prompts: pd.DataFrame) -> "Outcomes":
        """From two tables: answers with question, p, m, right; prompts with question, tokens, protected, features.

        ArtifactError if a question has no prompt, or not exactly one answer for each pair.
        """
        try:
            right = answers.assign(pair=list(zip(answers.p, answers.m, strict=True))).pivot(
                index="question", columns="pair", values="right"
            )
            pairs = tuple(sorted((Pair(float(p), int(m)) for p, m in right), key=weight))
            of = prompts.set_index("question").loc[right.index]
        except (ValueError, KeyError) as error:
            raise ArtifactError(f"the table of outcomes cannot be used: {error}") from None
        if right.isna().any(axis=None) or right.empty or len(of) > len(right):
            raise ArtifactError("outcomes need one prompt of every question, and one answer with every pair (p, m)")
        return cls(
            right.index.to_numpy(object),
            of.tokens.to_numpy(np.int64),
            of.protected.to_numpy(np.int64),
            of[list(PROMPT_FEATURES)].to_numpy(float),
            pairs,
            right[list(pairs)].to_numpy(bool),
        )

    def rows(self, chosen: Bools) -> "Outcomes":
        """Some of the questions, by a mask of shape (n,)."""
        names = ("questions", "tokens", "protected", "features", "right")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def meets(self, latency: LatencyModel, objective: Objective) -> Bools:
        """Which pairs keep to the objective's TTFT and which to its TPOT, shape (2, n, pairs).

        ArtifactError for pairs that the latency model does not have.
        """
        unknown = [pair for pair in self.pairs if pair not in latency.pairs]
        if unknown:
            raise ArtifactError(f"outcomes were tried for {tuple(unknown[0])}, which the latency model does not have")
        columns = [latency.pairs.index(pair) for pair in self.pairs]
        return latency.meets(self.tokens, objective, self.protected)[..., columns]

    def with_objective(self, objective: Objective) -> Floats:
        """The features of a decision, shape (n, 6)."""
        asked = np.tile([objective.ttft, objective.tpot], (len(self.tokens), 1))
        return np.hstack([self.features, asked])


def labels(outcomes: Outcomes, feasible: Bools, rule: str = LIGHTEST_RIGHT) -> Ints:
    """The index of the pair that each question should get, shape (n,).

    feasible   shape (n, pairs), at least one of each question
    rule       LIGHTEST_RIGHT: the lightest feasible pair whose answer is right; if none is, the heaviest feasible.
               LAST_RIGHT: of the feasible pairs whose answer is right that of the largest m, and of equal m that of
               the smallest p; if none is right, the smallest p with the largest m, feasible or not.
    """
    if not np.all(np.any(feasible, axis=1)):
        raise ArtifactError("no pair (p, m) is feasible for some questions, which can have no label")
    right = outcomes.right & feasible
    if rule == LIGHTEST_RIGHT:
        heaviest = feasible.shape[1] - 1 - feasible[:, ::-1].argmax(1)
        lightest: Ints = np.where(np.any(right, axis=1), right.argmax(1), heaviest)
        return lightest
    if rule != LAST_RIGHT:
        raise ArtifactError(f"rule must be {LIGHTEST_RIGHT!r} or {LAST_RIGHT!r}, got {rule!r:.40}")
    last_first = sorted(range(len(outcomes.pairs)), key=lambda i: (-outcomes.pairs[i].m, outcomes.pairs[i].p))
    found: Ints = np.array(last_first)[right[:, last_first].argmax(1)]  # the first of all if none is right
    return found


def train(features: Floats, labels: Ints, pairs: Sequence[Pair]) -> Classifier:
    """A multinomial logistic regression of the labels, which index `pairs`, on features of shape (n, features)."""
    from sklearn.linear_model import LogisticRegression

    if not len(labels):
        raise ArtifactError("a classifier needs at least one label")
    mean, spread = features.mean(0), features.std(0)
    scale = np.where(spread > 0, spread, 1.0)
    classes = np.unique(labels)
    if classes.size == 1:  # which scikit-learn does not fit
        weights, biases = np.zeros((1, mean.size)), np.zeros(1)
    else:
        fitted = LogisticRegression(max_iter=5000).fit((features - mean) / scale, labels)
        weights, biases = fitted.coef_, fitted.intercept_
    if classes.size == 2:  # it has one logit, that of the second class
        weights, biases = np.vstack([0 * weights, weights]), np.concatenate([[0.0], biases])
    return Classifier(tuple(pairs[i] for i in classes), weights, biases, mean, scale)


def train_on(
    outcomes: Outcomes, latency: LatencyModel, objectives: Sequence[Objective], rule: str = LIGHTEST_RIGHT
) -> Classifier:
    """A classifier of the labels of all questions and objectives, without those for which no pair is feasible."""
    features, found = [], []
    for objective in objectives:
        feasible = np.logical_and(*outcomes.meets(latency, objective))
        possible: Bools = np.any(feasible, axis=1)
        some = outcomes.rows(possible)
        features.append(some.with_objective(objective))
        found.append(labels(some, feasible[possible], rule))
    return train(np.vstack(features), np.concatenate(found), outcomes.pairs)


def train_right(outcomes: Outcomes) -> Classifier:
    """One logistic regression of `right` over all questions and pairs; a pair's score is the log odds of being right.

    Its terms are p, m, their squares and their product, the features of the prompt, and these times p and times m.
    The objective is no feature: it only limits the choice.
    """
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(outcomes.right)) < 2:
        raise ArtifactError("of all answers some must be right and some wrong, to estimate which are likely right")
    p, m = np.array(outcomes.pairs).T / [[1], [WHOLE]]
    mean, spread = outcomes.features.mean(0), outcomes.features.std(0)
    scale = np.where(spread > 0, spread, 1.0)
    each = np.repeat((outcomes.features - mean) / scale, p.size, axis=0)
    alone = np.column_stack([p, m, p * p, m * m, p * m])
    p_of, m_of = (np.tile(one, len(outcomes.tokens))[:, None] for one in (p, m))
    terms = np.hstack([np.tile(alone, (len(outcomes.tokens), 1)), each, each * p_of, each * m_of])
    fitted = LogisticRegression(max_iter=5000).fit(terms, outcomes.right.ravel())
    of_pair, plain, by_p, by_m = np.split(fitted.coef_[0], [5, 5 + mean.size, 5 + 2 * mean.size])
    weights = plain + np.outer(p, by_p) + np.outer(m, by_m)
    unused = len(FEATURES) - mean.size
    return Classifier(
        outcomes.pairs,
        np.pad(weights, ((0, 0), (0, unused))),
        fitted.intercept_ + alone @ of_pair,
        np.pad(mean, (0, unused)),
        np.pad(scale, (0, unused), constant_values=1.0),
    )
