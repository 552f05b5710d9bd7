"""Policies against a search one question at a time; what compare reports of them in tables that are made up."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact.elastic import policies
from artifact.elastic.labels import Outcomes
from artifact.errors import ArtifactError
from disco_core.systems.elastic import Classifier, LatencyModel, Objective, Pair
from tests.helpers.outcomes import LATENCY, LEVELS, PAIRS, SHARES, outcomes_of

OBJECTIVES = [Objective(1, 1), Objective(0.6, 0.8), Objective(0.3, 0.6), Objective(0.2, 0.3)]
rows = st.lists(st.booleans(), min_size=9, max_size=9)
tables = st.lists(st.tuples(rows, st.integers(5, 300)), min_size=1, max_size=6)
latencies = st.builds(
    LatencyModel,
    st.just(LEVELS),
    st.tuples(st.floats(0, 0.1), st.floats(0, 0.001)),
    st.floats(0, 0.1),
    st.floats(0, 0.1),
    st.just(SHARES),
)


def of(table, first=0):
    """Outcomes from (right, tokens) of each question."""
    right, tokens = zip(*table, strict=True)
    return outcomes_of(right, list(tokens), first=first)


def by_weight(pairs):
    return sorted(pairs, key=lambda pair: (round(pair.p * pair.m), pair.m))


def is_right(outcomes, i, pair):
    return bool(outcomes.right[i][outcomes.pairs.index(pair)])


@given(tables, tables, st.sampled_from(OBJECTIVES), st.integers(0, 99))
def test_each_policy_chooses_what_a_search_finds(table, calibration_table, objective, seed):
    outcomes, calibration = of(table), of(calibration_table, first=50)
    meets = outcomes.meets(LATENCY, objective)
    classifier = random_classifier(seed)

    def chosen(policy):
        return [outcomes.pairs[i] for i in policy(outcomes, meets, objective)]

    found = {
        "whole": chosen(policies.whole),
        "prompt": chosen(policies.prompt_only),
        "model": chosen(policies.model_only),
        "random": chosen(policies.random_feasible(np.random.default_rng(seed))),
        "fixed": chosen(policies.best_fixed(calibration)),
        "ours": chosen(policies.classified(classifier)),
        "oracle": chosen(policies.oracle),
    }
    hits = {pair: sum(is_right(calibration, i, pair) for i in range(len(calibration.tokens))) for pair in PAIRS}
    for i, l in enumerate(outcomes.tokens):
        feasible = LATENCY.feasible(int(l), objective)  # the lightest pair always is
        first_s = {pair: float(LATENCY.seconds(l, pair)[0]) for pair in PAIRS}
        limit_s = first_s[Pair(1.0, 100)] * objective.ttft * (1 + 1e-9)
        assert found["whole"][i] == (1.0, 100)
        prompts = [Pair(p, 100) for p in SHARES if first_s[Pair(p, 100)] <= limit_s]
        assert found["prompt"][i] == (prompts[-1] if prompts else Pair(1.0, 100))
        if any(pair.p == 1 for pair in feasible):
            assert found["model"][i].m == max(pair.m for pair in feasible if pair.p == 1)
        assert found["model"][i].p == 1
        assert found["random"][i] in feasible
        assert found["fixed"][i] == max(by_weight(feasible), key=hits.get)
        assert found["ours"][i] == classifier.choose([0, 0, 0, 0, objective.ttft, objective.tpot], feasible)
        good = [pair for pair in by_weight(feasible) if is_right(outcomes, i, pair)]
        assert found["oracle"][i] == (good or by_weight(feasible)[-1:])[0]


def random_classifier(seed):
    rng = np.random.default_rng(seed)
    pairs = tuple(PAIRS[i] for i in rng.choice(9, 5, replace=False))
    return Classifier(pairs, rng.normal(size=(5, 6)), rng.normal(size=5), np.zeros(6), np.ones(6))


def test_every_feasible_pair_is_drawn_as_often():
    outcomes = of([([True] * 9, 100)] * 3000)
    objective = Objective(0.6, 0.8)
    meets = outcomes.meets(LATENCY, objective)
    drawn = policies.random_feasible(np.random.default_rng(0))(outcomes, meets, objective)
    counts = np.bincount(drawn, minlength=9)
    feasible = np.logical_and(*meets)[0]
    assert not counts[~feasible].any()
    expected = 3000 / feasible.sum()
    assert np.abs(counts[feasible] - expected).max() < 5 * math.sqrt(expected)


@settings(max_examples=25)
@given(tables, tables, latencies, st.integers(0, 9))
def test_what_is_compared_is_counted_over_the_same_questions(table, calibration_table, latency, seed):
    calibration = of([*calibration_table, ([True] * 9, 300), ([False] * 9, 300)], first=50)
    test = of(table)
    found = policies.compare(calibration, test, latency, OBJECTIVES, rng=np.random.default_rng(seed))
    assert len(found) == 9 * len(OBJECTIVES)
    for objective in OBJECTIVES:
        some = found[(found.ttft == objective.ttft) & (found.tpot == objective.tpot)].set_index("policy")
        possible = [i for i, row in enumerate(np.logical_and(*test.meets(latency, objective))) if row.any()]
        assert (some.questions == len(test.tokens)).all()
        assert (some.left_out == len(test.tokens) - len(possible)).all()
        if not possible:
            assert some[["met", "accuracy", "in_time", "p", "m"]].isna().all(axis=None)
            continue
        whole = [is_right(test, i, Pair(1.0, 100)) for i in possible]
        assert some.accuracy[policies.WHOLE_ALWAYS] == pytest.approx(np.mean(whole))
        assert some.met[policies.WHOLE_ALWAYS] == (min(objective.ttft, objective.tpot) >= 1)
        feasible = np.logical_and(*test.meets(latency, objective))[possible]
        best = (test.right[possible] & feasible).any(1).mean()
        assert some.accuracy[policies.ORACLE] == pytest.approx(best)
        assert some.in_time[policies.WHOLE_ALWAYS] == pytest.approx(np.mean(whole) * some.met[policies.WHOLE_ALWAYS])
        for policy in set(some.index) - {policies.WHOLE_ALWAYS, policies.PROMPT_ONLY, policies.MODEL_ONLY}:
            assert some.met[policy] == 1
            assert some.in_time[policy] == some.accuracy[policy]
        assert some.accuracy[policies.PAPER] <= some.accuracy[policies.ORACLE]


def test_a_policy_pays_only_for_what_it_uses():
    """Scores that take as long as half of the whole prompt leave a smaller model its level."""
    outcomes = of([([True] * 9, 100)])
    latency = LatencyModel(LEVELS, scoring_s=(0.0, 0.005), decision_s=0.1, shares=SHARES)
    found = policies.compare(
        of([([True] * 8 + [False], 100)], first=9),
        outcomes,
        latency,
        [Objective(0.7, 1)],
        rng=np.random.default_rng(0),
    ).set_index("policy")
    assert found.m[policies.MODEL_ONLY] == 60  # of a TTFT of 0.6 s
    assert found.p[policies.PROMPT_ONLY] == 0.2  # of 0.2 s and 0.5 s for the scores
    assert found.met[[policies.MODEL_ONLY, policies.PROMPT_ONLY]].tolist() == [1, 1]
    assert (found.p * found.m)[policies.ORACLE] <= 10  # of 0.1 s, and 0.6 s for scores and decision


def test_what_is_learnt_beats_every_fixed_pair():
    """Long prompts need the whole model, short ones a short prompt: no pair is right for both."""
    lengths = list(range(40, 440, 2))
    right = [[(pair == (1.0, 60)) if l > 200 else pair == (0.5, 60) for pair in PAIRS] for l in lengths]
    features = np.log(lengths)[:, None] * [1, 0, 0, 0]
    halves = [outcomes_of(right[i::2], lengths[i::2], features[i::2], first=1000 * i) for i in range(2)]
    found = policies.compare(*halves, LATENCY, [Objective(0.8, 0.8)], rng=np.random.default_rng(0))
    accuracy = found.set_index("policy").accuracy
    assert accuracy[policies.ORACLE] == 1
    assert accuracy[policies.PAPER] > 0.95
    assert accuracy[policies.FIXED] < 0.65
    assert accuracy[policies.RELEASED] > 0.95  # one right pair of each is its lightest and its last


def test_what_is_right_by_chance_misleads_labels_but_not_the_estimate():
    """More of the prompt and a larger level are right more often, and every fourth answer is right by chance."""
    rng = np.random.default_rng(0)
    knows = np.array([0.6 * pair.p**0.5 * (pair.m / 100) ** 0.5 for pair in PAIRS])

    def drawn(count, first):
        right = (rng.random((count, 1)) < knows) | (rng.random((count, 9)) < 0.25)
        return outcomes_of(right.tolist(), features=rng.normal(size=(count, 4)), first=first)

    found = policies.compare(drawn(300, 0), drawn(2000, 1000), LATENCY, [Objective(1, 1)], rng=rng)
    accuracy = found.set_index("policy").accuracy
    assert accuracy[policies.LIKELIEST] > accuracy[policies.PAPER] + 0.1
    assert accuracy[policies.LIKELIEST] == pytest.approx(accuracy[policies.WHOLE_ALWAYS], abs=0.02)
    assert accuracy[policies.ORACLE] > accuracy[policies.WHOLE_ALWAYS] + 0.15


def test_sets_that_share_a_question_or_differ_in_their_pairs_are_refused():
    one, rng = of([([True] * 9, 100)]), np.random.default_rng(0)
    with pytest.raises(ArtifactError, match=r"^calibration and test share 1 questions, such as 'q0'$"):
        policies.compare(one, one, LATENCY, OBJECTIVES, rng=rng)
    other: Outcomes = replace(of([([True] * 9, 100)], first=5), pairs=one.pairs[:-1], right=one.right[:, :-1])
    with pytest.raises(ArtifactError, match=r"^calibration and test questions must have been tried with the same"):
        policies.compare(one, other, LATENCY, OBJECTIVES, rng=rng)
    with pytest.raises(ArtifactError, match=r"^the table of outcomes needs the pair \(1.0, 100\)$"):
        policies.whole(other, np.ones((2, 1, 8), bool), OBJECTIVES[0])
