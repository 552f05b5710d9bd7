"""The decision of (p, m): what is feasible against every pair in turn, the classifier against its definition."""

import math
import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import disco_core as dc
from disco_core.systems.compression import Frequencies
from disco_core.systems.elastic.decision import Classifier, LatencyModel, Objective, Pair, features, weight
from disco_core.systems.model_arrays import save_arrays

SHARES = (0.2, 0.55, 1.0)


def device(m, prefill=100.0, decode=20.0, startup=0.0):
    """A level whose latency is the share m of the whole model's, as the paper has it."""
    return dc.DeviceProfile(prefill / m, decode / m, startup * m)


def paper_model(levels=(100, 90, 80, 70, 60, 50, 40, 30, 20), **options):
    return LatencyModel({percent: device(percent / 100) for percent in levels}, **options)


rates = st.floats(1, 100)
profiles = st.builds(dc.DeviceProfile, rates, rates, st.floats(0, 1))
models = st.builds(
    LatencyModel,
    st.dictionaries(st.sampled_from([30, 50, 80]), profiles, max_size=3).flatmap(
        lambda levels: profiles.map(lambda whole: {100: whole} | levels)
    ),
    st.tuples(st.floats(0, 0.1), st.floats(0, 0.01)),
    st.floats(0, 0.1),
    st.floats(0, 0.1),
    st.sampled_from([SHARES, (0.5,), (1.0, 0.1)]),
)
objectives = st.builds(Objective, st.floats(0.05, 1.5), st.floats(0.05, 1.5))


def plainly_feasible(model, l, objective, protected):
    """Every pair in turn."""
    whole, found = model.levels[100], []
    for p in {*model.shares, 1.0}:
        for m, level in model.levels.items():
            kept = max(math.ceil(l * p * (1 - 1e-12)), protected)
            ttft = level.startup + kept / level.prefill_rate + model.scoring_s[0] + model.scoring_s[1] * l
            ttft += model.decision_s + model.switching_s
            # a ratio next to the objective may round to either side
            first = ttft / (whole.startup + l / whole.prefill_rate) / objective.ttft
            later = whole.decode_rate / level.decode_rate / objective.tpot
            assume(all(ratio == 1 or abs(ratio - 1) > 1e-6 for ratio in (first, later)))
            no_decision = (p, m) == (1, 100) and objective.ttft >= 1 and objective.tpot >= 1
            if (first <= 1 and later <= 1) or no_decision:
                found.append((p, m))
    return set(found)


@given(models, st.integers(1, 300), objectives, st.integers(0, 300))
def test_feasible_pairs_are_those_found_one_by_one(model, l, objective, protected):
    protected = min(protected, l)
    expected = plainly_feasible(model, l, objective, protected)
    if expected:
        found = model.feasible(l, objective, protected)
        assert set(found) == expected
        assert found == sorted(found, key=weight)
        assert all(isinstance(pair, Pair) for pair in found)
    else:
        with pytest.raises(dc.InputError, match=r"^the objective <.*> cannot be met by any level"):
            model.feasible(l, objective, protected)


@pytest.mark.parametrize("zeta", [(1, 1), (0.8, 0.9), (0.6, 0.8), (0.4, 0.7), (0.2, 0.6), (0.2, 0.5)])
def test_latency_as_the_paper_assumes_gives_the_paper_s_feasible_pairs(zeta):
    """`p m <= zeta_TTFT and m <= zeta_TPOT`, in whole percent so that nothing rounds."""
    ttft, tpot = (round(100 * ratio) for ratio in zeta)
    tenths, percents = range(1, 11), range(20, 101, 10)
    expected = {(p / 10, m) for p in tenths for m in percents if p * m <= 10 * ttft and m <= tpot}
    assert set(paper_model().feasible(100, Objective(*zeta))) == expected


def test_lighter_is_a_lower_product_then_a_lower_level():
    pairs = [Pair(0.7, 30), Pair(0.3, 70), Pair(0.2, 100), Pair(1.0, 30), Pair(0.6, 50), Pair(0.9, 20), Pair(0.1, 90)]
    assert [tuple(pair) for pair in sorted(pairs, key=weight)] == [
        (0.1, 90), (0.9, 20), (0.2, 100), (0.7, 30), (0.3, 70), (1.0, 30), (0.6, 50)
    ]  # fmt: skip


def test_what_a_decision_costs_leaves_the_whole_model_for_an_objective_of_one():
    model = paper_model(decision_s=0.001)
    assert Pair(1.0, 100) in model.feasible(100, Objective(1, 1))
    assert Pair(1.0, 100) not in model.feasible(100, Objective(1, 0.9))
    assert Pair(1.0, 80) not in model.feasible(100, Objective(0.8, 0.9))
    assert Pair(1.0, 80) in paper_model().feasible(100, Objective(0.8, 0.9))


def test_an_objective_that_is_too_tight_is_told_the_least_there_is():
    model = paper_model((100, 40), shares=(0.5, 1.0))
    with pytest.raises(dc.InputError) as caught:
        model.feasible(100, Objective(0.1, 0.5))
    assert str(caught.value) == (
        "the objective <0.1, 0.5> cannot be met by any level for a prompt of 100 tokens: "
        "the least feasible TTFT is 0.2 and the least TPOT 0.4 of the whole model's"
    )


@given(st.dictionaries(st.sampled_from([100, 60, 30]), profiles, min_size=1), st.randoms())
def test_a_fit_finds_the_lines_that_rows_lie_on(levels, random):
    levels |= {100: dc.DeviceProfile(10.0, 10.0)}
    rows = [
        (m, l, level.startup + l / level.prefill_rate, sign * 0.01 / level.decode_rate + 1 / level.decode_rate)
        for m, level in levels.items()
        for l in (10, 50, 400)
        for sign in (-1, 1)
    ]
    random.shuffle(rows)
    fitted = LatencyModel.fit(*zip(*rows, strict=True), decision_s=0.25)
    assert fitted.decision_s == 0.25
    for m, level in levels.items():
        first_s, token_s = fitted.seconds([20, 300], Pair(0.5, m))
        assert first_s == pytest.approx(0.25 + level.ttft([10, 150]), rel=1e-6)
        assert token_s == pytest.approx([1 / level.decode_rate] * 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Objective(0, 1), "objective: ttft must be finite and above 0, got 0"),
        (lambda: Objective(1, "x"), "objective: tpot must be a number, got 'x'"),
        (lambda: LatencyModel({}), "levels must be profiles by percent, 100 among them, got {}"),
        (lambda: LatencyModel({100: 5}), "levels must be profiles by percent"),
        (lambda: paper_model(decision_s=-1), "decision_s must be finite and non-negative seconds"),
        (lambda: paper_model(shares=(0.0, 1.0)), "shares must lie in (0, 1]"),
        (lambda: paper_model().seconds(10, Pair(0.5, 85)), "level 85 is unknown; the levels are 100, 90, 80, 70,"),
        (lambda: paper_model().feasible(0, Objective(1, 1)), "l must be a whole number of at least 1, got 0"),
        (lambda: paper_model().feasible(5, Objective(1, 1), 6), "protected must be from 0 to the prompt's tokens"),
        (lambda: LatencyModel.fit([100], [5], [1], [1]), "level 100: a fit needs one ttft_s per length"),
        (lambda: LatencyModel.fit([90, 90], [5, 6], [1, 2], [1, 1]), "levels must be profiles by percent, 100"),
        (lambda: LatencyModel.fit([100, 100], [5, 6], [1, 2], [1]), "percent, prompt_tokens, ttft_s and tpot_s must"),
    ],
)
def test_what_is_no_objective_or_latency_is_named(call, words):
    with pytest.raises(dc.InputError, match=f"^{re.escape(words)}"):
        call()


# --- the classifier

PAIRS = (Pair(0.5, 30), Pair(1.0, 30), Pair(0.5, 100), Pair(1.0, 100))


def classifier(rng, pairs=PAIRS, count=6):
    arrays = rng.normal(size=(len(pairs), count)), rng.normal(size=len(pairs)), rng.normal(size=count)
    return Classifier(pairs, *arrays, rng.uniform(0.5, 2, count))


@given(st.integers(0, 2**32 - 1), st.sets(st.sampled_from((*PAIRS, Pair(0.2, 30), Pair(0.7, 100))), min_size=1))
def test_the_choice_is_the_best_of_those_allowed(seed, allowed):
    rng = np.random.default_rng(seed)
    one, x, best = classifier(rng), rng.normal(size=6), None
    for c, pair in enumerate(PAIRS):
        logit = one.biases[c] + sum(
            w * (v - a) / s for w, v, a, s in zip(one.weights[c], x, one.mean, one.scale, strict=True)
        )
        assert one.scores(x)[c] == pytest.approx(logit)
        if pair in allowed and (best is None or logit > best[0]):
            best = logit, pair
    heaviest = max(allowed, key=lambda pair: (pair.p * pair.m, pair.m))
    assert one.choose(x, list(allowed)) == (heaviest if best is None else best[1])


def test_features_are_in_their_order():
    found = features(np.array([1.0, 2.0, 6.0]), 0.25, Objective(0.4, 0.7))
    assert found == pytest.approx([math.log(3), 3, math.sqrt(14 / 3), 0.25, 0.4, 0.7])


def test_a_file_gives_the_same_choices_for_its_model_only(tmp_path):
    parent, other, path = tmp_path / "model.gguf", tmp_path / "other.gguf", tmp_path / "classifier.npz"
    parent.write_bytes(b"GGUF")
    other.write_bytes(b"GGUF other")
    rng = np.random.default_rng(0)
    one = classifier(rng)
    one.save(path, parent)
    again = Classifier.load(path, parent, [30, 100])
    x = rng.normal(size=(5, 6))
    assert again.pairs == PAIRS
    assert again.scores(x).tolist() == one.scores(x).tolist()
    with pytest.raises(dc.InputError, match=rf"^{path} was made for another model than other\.gguf; train the class"):
        Classifier.load(path, other)
    with pytest.raises(
        dc.InputError, match=rf"^{path} chooses level 30, which is unknown; the levels here are 100, 80 %$"
    ):
        Classifier.load(path, parent, [100, 80])
    Frequencies.count([[0]], [True]).save(path, parent)
    with pytest.raises(
        dc.InputError, match=rf"^{path} does not hold pairs, weights, .*; train the classifier again$"
    ):
        Classifier.load(path, parent)
    arrays = {"pairs": np.ones((1, 3)), "weights": np.ones((1, 2))} | dict.fromkeys(["mean", "scale"], np.ones(2))
    for pairs in (np.ones((1, 3)), np.ones(2), np.array([[np.nan, np.nan]]), np.ones((0, 2)), np.array([["a", "b"]])):
        save_arrays(path, parent, arrays | {"pairs": pairs, "biases": np.ones(1)})
        with pytest.raises(dc.InputError, match=rf"^{path} is no classifier \(.*\); train the classifier again$"):
            Classifier.load(path, parent)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"biases": np.ones(3)}, "a classifier of 4 pairs and 6 features has arrays of shapes"),
        ({"pairs": ()}, "a classifier of 0 pairs"),
        ({"scale": np.zeros(6)}, "a classifier must have finite weights, and scales above 0"),
        ({"mean": np.full(6, np.nan)}, "a classifier must have finite weights"),
    ],
)
def test_arrays_that_are_no_classifier_are_named(change, words):
    one = classifier(np.random.default_rng(0))
    with pytest.raises(dc.InputError, match=f"^{words}"):
        Classifier(**vars(one) | change)


def test_a_choice_among_nothing_or_by_other_features_is_refused():
    one = classifier(np.random.default_rng(0))
    with pytest.raises(dc.InputError, match=r"^allowed must have at least one pair"):
        one.choose(np.zeros(6), [])
    with pytest.raises(dc.InputError, match=r"^features must be 6 numbers, got shape \(5,\)"):
        one.choose(np.zeros(5), PAIRS)
