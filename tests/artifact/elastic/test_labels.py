"""Labels against a search one question at a time, in tables that are made up; the classifier against its maker."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import disco_core as dc
from artifact.elastic.labels import (
    LAST_RIGHT,
    LIGHTEST_RIGHT,
    PROMPT_FEATURES,
    Outcomes,
    labels,
    train,
    train_on,
    train_right,
)
from artifact.errors import ArtifactError
from disco_core.systems.elastic import LatencyModel, Objective, Pair
from tests.helpers.outcomes import LATENCY, LEVELS, PAIRS, SHARES, outcomes_of

tables = st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=n))


def masks(outcomes, rows):
    """Rows by question in the order of `PAIRS` as a mask in the order of the outcomes, which sort by name."""
    by_name = [rows[int(name[1:])] for name in outcomes.questions]
    return np.array([[row[PAIRS.index(pair)] for pair in outcomes.pairs] for row in by_name])


@given(tables, st.data())
def test_a_label_is_what_a_search_of_all_pairs_finds(right, data):
    some = st.lists(st.booleans(), min_size=9, max_size=9).filter(any)
    feasible = data.draw(st.lists(some, min_size=len(right), max_size=len(right)))
    outcomes = outcomes_of(right)
    lightest, last = (
        [outcomes.pairs[i] for i in labels(outcomes, masks(outcomes, feasible), rule)]
        for rule in (LIGHTEST_RIGHT, LAST_RIGHT)
    )
    for i, name in enumerate(outcomes.questions):
        row = int(name[1:])
        allowed = [pair for pair, one in zip(PAIRS, feasible[row], strict=True) if one]
        good = [pair for pair in allowed if right[row][PAIRS.index(pair)]]
        by_weight = sorted(allowed, key=lambda pair: (round(pair.p * pair.m), pair.m))
        expected = by_weight[-1] if not good else min(good, key=by_weight.index)
        assert lightest[i] == expected
        # as the released code: the levels ascend, for each the shares descend, and the last right one stays
        kept = Pair(0.2, 100)
        for m in (30, 60, 100):
            for p in (1.0, 0.5, 0.2):
                if Pair(p, m) in good:
                    kept = Pair(p, m)
        assert last[i] == kept


@given(tables)
def test_outcomes_are_those_of_the_table_whatever_its_order(right):
    outcomes = outcomes_of(right, tokens=list(range(50, 50 + len(right))))
    for i, name in enumerate(outcomes.questions):
        assert outcomes.tokens[i] == 50 + int(name[1:])
        assert outcomes.right[i].tolist() == masks(outcomes, right)[i].tolist()
    assert [tuple(pair) for pair in outcomes.pairs] == [
        (0.2, 30), (0.2, 60), (0.5, 30), (0.2, 100), (1.0, 30), (0.5, 60), (0.5, 100), (1.0, 60), (1.0, 100)
    ]  # fmt: skip


def test_what_an_objective_allows_is_what_is_feasible_for_each_question():
    outcomes = outcomes_of([[True] * 9] * 3, tokens=[10, 45, 300])
    latency = LatencyModel(LEVELS, decision_s=0.05, shares=(0.5, *SHARES, 0.7))  # it may have more pairs
    objective = Objective(0.55, 0.7)
    meets = outcomes.meets(latency, objective).all(0)
    for row, l in zip(meets, outcomes.tokens, strict=True):
        found = [pair for pair, one in zip(outcomes.pairs, row, strict=True) if one]
        try:
            assert found == [pair for pair in latency.feasible(int(l), objective) if pair in PAIRS]
        except dc.InputError:
            assert not found
    assert not meets[0].any()
    assert meets[2].any()


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_the_arrays_decide_as_scikit_learn_does(classes):
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(classes)
    features = rng.normal(3, 2, size=(400, 6))
    features[:, 4] = 0.5  # one that never changes
    label = np.array([8, 1, 3, 0, 5])[(features[:, 0] // 1.5).astype(int) % classes]
    one = train(features, label, PAIRS)
    assert one.pairs == tuple(PAIRS[i] for i in sorted(set(label)))
    logits = one.scores(features)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if classes > 1:
        spread = np.where(features.std(0) > 1e-9, features.std(0), 1)
        scaled = (features - features.mean(0)) / spread
        assert chances == pytest.approx(LogisticRegression(max_iter=5000).fit(scaled, label).predict_proba(scaled))
    assert all(one.choose(x, PAIRS) == one.pairs[int(row.argmax())] for x, row in zip(features, logits, strict=True))


def test_what_features_tell_is_learnt_and_infeasible_choices_become_the_best_feasible():
    """Long prompts need the whole model, short ones only the smallest level, with the whole prompt."""
    lengths = list(range(20, 420, 2))
    right = [[pair.p == 1 and (l < 200 or pair.m == 100) for pair in PAIRS] for l in lengths]
    features = np.log(lengths)[:, None] * [1, 0, 0, 0]
    outcomes = outcomes_of(right, lengths, features[::1])
    loose, tight = Objective(1, 1), Objective(0.7, 0.7)
    one = train_on(outcomes, LATENCY, [loose])
    short, long = ([np.log(l), 0, 0, 0, 1, 1] for l in (50, 400))
    assert one.choose(short, LATENCY.feasible(50, loose)) == Pair(1.0, 30)
    assert one.choose(long, LATENCY.feasible(400, loose)) == Pair(1.0, 100)
    # of the pairs that were labels only (1, 30) is feasible; where none is, the heaviest feasible
    assert one.choose(long, LATENCY.feasible(400, tight)) == Pair(1.0, 30)
    assert one.choose(long, LATENCY.feasible(400, Objective(0.25, 1))) == Pair(0.2, 100)
    assert train_on(outcomes, LATENCY, [loose, tight], LAST_RIGHT).pairs == (
        Pair(0.2, 100),
        Pair(1.0, 60),
        Pair(1.0, 100),
    )


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_the_score_of_a_pair_is_the_log_odds_of_one_regression(seed):
    """Against scikit-learn's own polynomial terms, fitted to one row per question and pair."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    features = rng.normal(2, 3, size=(12, 4)) * [1, 1, 1, 0]  # one that never changes
    right = rng.random((12, 9)) < 0.5
    right[0, :2] = [True, False]
    outcomes = outcomes_of(right.tolist(), features=features)
    shifted = (outcomes.features - outcomes.features.mean(0)) / [*outcomes.features.std(0)[:3], 1]

    def terms(x, pair):
        p, m = pair.p, pair.m / 100
        return [p, m, p**2, m**2, p * m, *x, *(p * x), *(m * x)]

    rows = [terms(x, pair) for x in shifted for pair in outcomes.pairs]
    fitted = LogisticRegression(max_iter=5000).fit(rows, outcomes.right.ravel())
    one = train_right(outcomes)
    assert one.pairs == outcomes.pairs
    found = one.scores(outcomes.with_objective(Objective(rng.random() + 0.1, 0.5)))
    assert found.ravel() == pytest.approx(fitted.decision_function(rows), abs=1e-3)


# --- bad input


def refused(call):
    with pytest.raises(ArtifactError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tables_that_cannot_be_used_are_named():
    answers = pd.DataFrame([{"question": "q", "p": p, "m": m, "right": 1} for p, m in PAIRS])
    prompts = pd.DataFrame([{"question": "q", "tokens": 9, "protected": 0} | dict.fromkeys(PROMPT_FEATURES, 0.0)])
    assert Outcomes.of(answers, prompts).right.all()
    cannot = "the table of outcomes cannot be used: "
    assert refused(lambda: Outcomes.of(answers, prompts.assign(question="r"))).startswith(cannot)
    assert refused(lambda: Outcomes.of(pd.concat([answers, answers]), prompts)).startswith(cannot)
    assert refused(lambda: Outcomes.of(answers, pd.concat([prompts, prompts]))).startswith("outcomes need one prompt")
    both = pd.concat([answers, answers[:4].assign(question="r")])
    assert refused(lambda: Outcomes.of(both, pd.concat([prompts, prompts.assign(question="r")]))) == (
        "outcomes need one prompt of every question, and one answer with every pair (p, m)"
    )


def test_a_label_without_a_feasible_pair_or_by_another_rule_is_refused():
    outcomes = outcomes_of([[True] * 9])
    nothing = np.zeros((1, 9), bool)
    assert refused(lambda: labels(outcomes, nothing)) == (
        "no pair (p, m) is feasible for some questions, which can have no label"
    )
    assert refused(lambda: labels(outcomes, ~nothing, "first")).startswith("rule must be 'lightest right' or 'last")
    assert refused(lambda: train_right(outcomes)).startswith("of all answers some must be right and some wrong")
    assert refused(lambda: train_on(outcomes, LATENCY, [Objective(0.01, 1)])).startswith(
        "a classifier needs at least"
    )
    fewer = LatencyModel({m: LEVELS[m] for m in (100, 30)}, shares=SHARES)
    assert refused(lambda: outcomes.meets(fewer, Objective(1, 1))) == (
        "outcomes were tried for (0.2, 60), which the latency model does not have"
    )
