"""Measuring the decision: prompts, requests, queueing and what is met; bad settings are one line."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.data import model, parse
from artifact.elastic.labels import PROMPT_FEATURES
from artifact.measure import elastic, objective_answers, objective_live, objective_requests, objectives
from artifact.measure.objective_answers import CALIBRATION, SHOTS, TEST, Asked
from artifact.measure.objective_live import Choice
from artifact.measure.objective_requests import Decider
from disco_core.errors import InputError
from disco_core.systems.compression import keep
from disco_core.systems.elastic import Classifier, LatencyModel, Level, Objective, Pair
from tests.helpers.measuring import a_run, defaults
from tests.helpers.outcomes import LATENCY, LEVELS, PAIRS, SHARES
from tests.helpers.tiny import WORDS, tiny_model

OBJECTIVES = [Objective(1, 1), Objective(0.6, 0.8), Objective(0.2, 0.3)]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"percents": [100]}, "percents must be whole numbers from 1 to 99, got .100"),
        ({"shares": [0.7]}, "shares must be different numbers"),
        ({"shares": [1, 1.5]}, "shares must be finite and"),
        ({"objectives": [1, 1]}, r"objectives must be pairs \[zeta_TTFT, zeta_TPOT\]"),
        ({"objectives": [[0, 1]]}, "objective: ttft must be finite and above 0"),
        ({"objectives": [[1, 1], [1, 1.0]]}, "objectives must be different ones"),
        ({"shares": [1]}, "shares must be different numbers of at most 6 decimals, 1 and smaller ones"),
        ({"shares": [1, 1 / 3]}, "shares must be different numbers of at most 6 decimals"),
        ({"races": 0}, "races"),
        ({"race_tokens": [40]}, "race_tokens must be the least and the most"),
        ({"race_tokens": [40, 20]}, "race_tokens must be the least and the most"),
        ({"service": "gpt-9"}, "gpt-9"),
        ({"alphas": []}, "alphas must hold at least one"),
        ({"utilisation": 1}, "utilisation"),
        ({"lengths": [20]}, "at least 2 different lengths"),
        ({"decode_tokens": 1}, "at least 2 decode_tokens"),
        ({"prompt_tokens": 900}, "lengths with decode_tokens must be at most 512"),
        ({"requests": 0}, "requests"),
        ({"classifier": None}, "classifier"),
        ({"evaluate": 1}, "evaluate"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, changed, told):
    with pytest.raises(InputError, match=told) as caught:
        objectives.measure(a_run(tmp_path, "objectives", **changed))
    assert "\n" not in str(caught.value)


def test_a_classifier_of_another_model_or_of_other_levels_is_one_line(tmp_path, monkeypatch):
    levels = {100: Level(1.0, model.smollm2_path())}
    monkeypatch.setattr(objectives, "made_levels", lambda *_: levels)
    other, path = tmp_path / "other.gguf", tmp_path / "classifier.npz"
    other.write_bytes(b"another model")
    classifier = Classifier((Pair(0.4, 30),), np.ones((1, 6)), np.zeros(1), np.zeros(6), np.ones(6))
    for parent, told in ((other, "was made for another model"), (model.smollm2_path(), "chooses level 30, which is")):
        classifier.save(path, parent)
        with pytest.raises(InputError, match=told) as caught:
            objectives.measure(a_run(tmp_path, "objectives", classifier=str(path)))
        assert "\n" not in str(caught.value)


def test_a_classifier_that_cannot_choose_among_the_pairs_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(objectives, "made_levels", lambda *_: {100: Level(1.0, model.smollm2_path())})
    path = tmp_path / "classifier.npz"
    for share, features, told in (
        (1.0, 4, "on 4 features, not on 6"),
        (0.3, 6, "does not know the share"),
    ):
        arrays = np.ones((1, features)), np.zeros(1), np.zeros(features), np.ones(features)
        Classifier((Pair(share, 100),), *arrays).save(path, model.smollm2_path())
        with pytest.raises(InputError, match=told) as caught:
            objectives.measure(a_run(tmp_path, "objectives", classifier=str(path)))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        objectives.fingerprint(str(tmp_path / "nowhere.npz"))
    assert objectives.fingerprint("") == ""
    assert len(objectives.fingerprint(str(path))) == 64


def test_levels_that_are_there_are_not_made_again_and_others_are_unknown(levels_folder, monkeypatch):
    monkeypatch.setattr(elastic, "LEVELS", levels_folder)
    made = []
    monkeypatch.setattr(elastic.make, "make", lambda *_, **options: made.append(options))
    assert [*elastic.made_levels([64, 85], 48, 0)] == [100, 85, 63]
    assert [*elastic.made_levels([63], 48, 0)] == [100, 63]
    assert not made
    with pytest.raises(InputError, match=r"^the level 50 % is unknown; the levels are 100, 85, 63 %$"):
        elastic.made_levels([85, 50], 48, 0)
    assert made[0]["answer_tokens"] == 48


def asked_of(tokens, protected=0, name="q"):
    mask = np.arange(tokens) >= tokens - protected
    return Asked(name, "task", TEST, list(range(tokens)), mask, [], 0, [])


def test_objectives_tighter_than_anything_feasible_are_one_line():
    prompts = [asked_of(100), asked_of(40)]
    table = objective_live._objectives(LATENCY, prompts, [*OBJECTIVES, Objective(0.01, 0.01)])
    assert table.feasible.tolist() == [2, 2, 2, 0]
    assert table.least_tpot.tolist() == pytest.approx([0.3] * 4)
    assert table.least_ttft[0] == pytest.approx(0.06)
    with pytest.raises(
        InputError, match=r"^the objective <0.01, 0.01> cannot be met by any level for a prompt"
    ) as told:
        objective_live._objectives(LATENCY, prompts, [Objective(0.01, 0.01)])
    assert "\n" not in str(told.value)


# --- prompts ---


@pytest.fixture
def task(monkeypatch):
    """A task with 30 different questions and one that is there twice."""
    rows = [(f"Which number comes after {k}? Think of {k} apples.", [str(k + 1), str(k)], k % 2) for k in range(30)]
    table = pd.DataFrame([*rows, rows[0]], columns=["question", "options", "correct"])
    monkeypatch.setattr(parse, "load", lambda _: table)
    return table


def test_examples_calibration_and_test_questions_share_none(task):
    found = objective_answers.task_prompts("PIQA", 12, 9, 3)
    assert [one.split for one in found] == [CALIBRATION] * 12 + [TEST] * 9
    assert len({one.question for one in found}) == 21
    tokenizer = model.tokenizer()
    texts = [tokenizer.detokenize(one.ids).decode() for one in found]
    examples = texts[0][: texts[0].rindex("Question:")]
    assert examples.count("Question:") == SHOTS
    for one, text in zip(found, texts, strict=True):
        row = task.loc[int(one.question.split()[1])]
        assert text == f"{examples}Question: {row.question}\nAnswer:"
        assert row.question not in examples
        assert one.right == row.correct
        stays = tokenizer.detokenize(np.array(one.ids)[one.protected].tolist()).decode()
        assert stays == f"Question: {row.question}\nAnswer:"
        assert tokenizer.detokenize(one.text).decode() == f"{stays} {row.options[row.correct]}"
    again = objective_answers.task_prompts("PIQA", 12, 9, 3)
    assert [one.ids for one in again] == [one.ids for one in found]
    with pytest.raises(InputError, match=r"^PIQA has 30 questions, fewer than the 31 that are asked for$"):
        objective_answers.task_prompts("PIQA", 20, 8, 3)


def test_committed_prompts_make_requests_of_a_length_whose_last_prompt_stays():
    found = objective_answers.plain_prompts([80] * 130, 0)
    lengths = [len(one.ids) for one in found]
    assert min(lengths) >= 80
    assert max(lengths) < 80 + 130
    assert len({one.question for one in found}) == 120  # as many as there are
    texts = set(pd.read_csv(objective_answers.PROMPTS).prompt)
    for one in found[:5]:
        stays = model.tokenizer().detokenize(np.array(one.ids)[one.protected].tolist(), special=True).decode()
        opening, ending = model.TEMPLATE.split("{prompt}")
        assert stays.removeprefix(opening).removesuffix(ending).strip() in texts
    assert len(objective_answers.plain_text(77)) == 77
    with pytest.raises(InputError, match="a prompt has at most"):
        objective_answers.plain_text(10**6)


def test_frequencies_are_the_same_after_they_were_a_table():
    texts = [[5, 6, 7, 5, 6], [9], [6, 5]]
    counted = objective_answers.counted(texts)
    table = objective_answers.counts(counted)
    assert table["count"][table.second == objective_answers.ALONE].sum() == 8
    assert table["count"][table.second != objective_answers.ALONE].sum() == 5
    found = objective_answers.frequencies_of(table)
    ids = [5, 6, 5, 9, 7, 7]
    assert found.scores(ids).tolist() == counted.scores(ids).tolist()
    with pytest.raises(InputError, match="were counted for another vocabulary"):
        objective_answers.frequencies_of(table.assign(second=10**6))


def test_a_prompt_that_shares_its_beginning_is_answered_as_if_it_stood_alone(tmp_path):
    level = Level(1.0, tiny_model(tmp_path / "tiny.gguf"))
    rng = np.random.default_rng(0)
    examples = rng.integers(WORDS, size=12).tolist()
    prompts = []
    for k in range(12):
        ids = examples + rng.integers(WORDS, size=4).tolist()
        options = [rng.integers(WORDS, size=1 + size).tolist() for size in (0, 1, 2)]
        mask = np.arange(16) >= 12
        prompts.append(Asked(f"q{k}", "task", TEST, ids, mask, options, k % 3, []))
    scores = rng.random(16)
    for p in (1, 0.5):
        found = objective_answers._right(level, prompts, p, lambda _: scores)
        alone = [objective_answers._right(level, [one], p, lambda _: scores)[0] for one in prompts]
        assert found == alone
        assert 0 < sum(found) < 12
    assert objective_answers.kept(prompts[0], 0.5, scores) == [
        prompts[0].ids[k] for k in keep(scores, 0.5, prompts[0].protected)
    ]


# --- requests ---


@given(st.integers(1, 7), st.integers(1, 700), st.floats(-2, 2))
def test_requests_of_each_objective_grow_exponentially(objectives, requests, alpha):
    found = objective_requests.request_counts(objectives, requests, alpha)
    shares = [math.exp(alpha * i) for i in range(objectives)][::-1]  # the tightest is the last, and i = 0
    assert found.sum() == requests
    for count, share in zip(found, shares, strict=True):
        assert abs(count - requests * share / sum(shares)) < 1


def test_a_trace_has_the_requests_that_were_counted():
    prompts = [asked_of(5, name=f"q{k}") for k in range(4)]
    found = objective_requests.trace(prompts, OBJECTIVES, 60, 0.25, np.random.default_rng(0))
    counts = objective_requests.request_counts(3, 60, 0.25)
    assert [sum(objective == one for _, objective in found) for one in OBJECTIVES] == counts.tolist()
    assert {one.question for one, _ in found} == {"q0", "q1", "q2", "q3"}


@given(st.lists(st.floats(0.01, 2), min_size=1, max_size=30), st.integers(0, 99))
def test_a_request_starts_when_it_is_there_and_the_device_is_free(services, seed):
    rows = pd.DataFrame({"service_s": services, "ttft_s": np.array(services) / 2})
    found = objective_requests.queued(rows, 0.5, np.random.default_rng(seed))
    for k, row in enumerate(found.itertuples()):
        # the sum of all service times since any request before, from its arrival, bounds the start from below
        earliest = [found.arrival_s[i] + sum(services[i:k]) for i in range(k + 1)]
        assert row.start_s == pytest.approx(max(earliest))
        assert row.queued_ttft_s == pytest.approx(row.start_s - row.arrival_s + row.ttft_s)


def test_the_device_answers_for_the_share_of_the_time_that_was_asked_for():
    rows = pd.DataFrame({"service_s": np.full(4000, 0.2), "ttft_s": 0.1})
    found = objective_requests.queued(rows, 0.4, np.random.default_rng(0))
    assert 4000 * 0.2 / found.arrival_s.max() == pytest.approx(0.4, rel=0.05)
    # the mean wait of M/D/1
    assert (found.start_s - found.arrival_s).mean() == pytest.approx(0.4 * 0.2 / (2 * 0.6), rel=0.15)


@given(st.integers(5, 300), st.sampled_from(OBJECTIVES), st.integers(0, 99))
def test_the_pair_of_a_request_is_feasible_and_the_best_that_is_known(tokens, objective, seed):
    rng = np.random.default_rng(seed)
    scores, safe = rng.random(tokens), int(rng.integers(tokens // 2))
    classifier = Classifier(tuple(PAIRS), rng.normal(size=(9, 6)), rng.normal(size=9), np.zeros(6), np.ones(6))
    chosen = Decider(None, LATENCY, classifier).pair(scores, 0.1, objective, safe)
    heaviest = Decider(None, LATENCY).pair(scores, 0.1, objective, safe)
    met = np.logical_and(*LATENCY.meets([tokens], objective, safe))[0]
    allowed = [pair for pair, one in zip(LATENCY.pairs, met, strict=True) if one]
    if not allowed:
        assert chosen == heaviest == min(PAIRS, key=lambda pair: pair.p * pair.m)
        return
    x = [np.log(tokens), scores.mean(), scores.std(), 0.1, objective.ttft, objective.tpot]
    logits = classifier.weights @ x + classifier.biases
    best = max(allowed, key=lambda pair: logits[classifier.pairs.index(pair)])
    assert logits[classifier.pairs.index(chosen)] == pytest.approx(logits[classifier.pairs.index(best)])
    assert heaviest.p * heaviest.m == max(pair.p * pair.m for pair in allowed)


def test_a_request_is_met_by_what_the_whole_model_keeps_in_its_trials():
    """20 trials, of which the slowest two are 10 % and 50 % above the others: 95 % are within 10 %."""
    slower = np.array([1.0] * 18 + [1.1, 1.5])
    trials = pd.DataFrame({"percent": 100, "prompt_tokens": 50, "ttft_s": 0.5 * slower, "tpot_s": 0.1 * slower})
    rows = pd.DataFrame(
        {
            "prompt_tokens": 100,
            "ttft": 0.5,
            "tpot": 0.8,
            "ttft_s": [0.549, 0.551, 0.3, 0.3],
            "tpot_s": [0.08, 0.08, 0.089, np.nan],
        }
    )
    found = objective_requests.judged(rows, trials, LatencyModel(LEVELS))
    assert found.whole_ttft_s.tolist() == pytest.approx([1.1] * 4)
    assert found.whole_tpot_s.tolist() == pytest.approx([0.11] * 4)
    assert found.met_ttft.tolist() == [1, 0, 1, 1]
    assert found.met_tpot.tolist() == [1, 1, 0, 1]


def test_latency_is_fitted_with_what_scoring_and_deciding_take():
    rows = [(m, l, m * l / 1e4, m / 1e3) for m in LEVELS for l in (50, 100)]
    trials = pd.DataFrame([*rows, (100, 50, 0.5, np.nan)], columns=["percent", "prompt_tokens", "ttft_s", "tpot_s"])
    scoring = pd.DataFrame(
        [("frequencies", l, 0.01 + 0.001 * l) for l in (50, 100)] + [("random", 50, 9.0)],
        columns=["method", "prompt_tokens", "seconds"],
    )
    found = {"latency": trials, "scoring": scoring}
    latency = objective_live.latency_model(found, SHARES)
    assert latency.scoring_s == pytest.approx((0.01, 0.001))
    assert latency.decision_s == 0
    assert set(latency.pairs) == set(PAIRS)
    assert latency.levels[60].ttft(80) == pytest.approx(0.48)
    latency = objective_live.latency_model(found | {"deciding": pd.DataFrame({"seconds": [0.2, 0.4]})}, SHARES)
    assert latency.decision_s == pytest.approx(0.3)
    requests = pd.DataFrame({"scoring_s": [0.1, 0.2, 0.9], "decision_s": [0.01, 0.02, 0.5]})
    latency = objective_live.latency_model(found | {"requests": requests}, SHARES)
    assert (latency.scoring_s, latency.decision_s) == ((0.2, 0.0), 0.02)


def test_pairs_are_learnt_from_the_answers_to_calibration_questions():
    assert objectives._trained({}) is None
    prompts = pd.DataFrame(
        {"question": list("abcd"), "split": [CALIBRATION] * 3 + [TEST], "tokens": 9, "protected": 3}
    )
    prompts[list(PROMPT_FEATURES)] = 0.5
    rows = [(q, p, m, int(p * m > 25 and q != "d")) for q in "abcd" for p, m in PAIRS]
    answers = pd.DataFrame(rows, columns=["question", "p", "m", "right"])
    assert objectives._trained({"answers": answers[:0], "prompts": prompts}) is None
    learnt = objectives._trained({"answers": answers, "prompts": prompts})
    scores = dict(zip(learnt.pairs, learnt.scores([0.5] * 6), strict=True))
    assert scores[1.0, 100] > scores[0.2, 30]
    # of the test question, which no pair answers, nothing is learnt
    others = answers.assign(right=answers.right.where(answers.question != "d", 1))
    assert np.allclose(objectives._trained({"answers": others, "prompts": prompts}).biases, learnt.biases)


@pytest.mark.slow
def test_requests_are_answered_live_by_the_pair_that_is_chosen(tmp_path, levels_folder):
    levels = elastic.load_levels(levels_folder, model.smollm2_path())
    few = {"lengths": [16, 40], "repeats": 1, "alphas": [0, 0.25], "decode_tokens": 4}
    run = a_run(tmp_path, "objectives", **few)
    sent = objective_answers.plain_prompts([24] * 4, 0)
    frequencies = objective_answers.counted([one.text for one in sent])
    found = objectives.run_in_thread(objective_live.measured(run, levels, sent, Choice(frequencies, None, 1, 8)))
    rows = found["requests"]
    assert len(found["latency"]) == 3 * 2
    assert len(found["whole"]) == 2 * objective_live.TRIALS
    assert set(found["whole"].prompt_tokens) <= {16, 40}
    assert set(found["scoring"].method) == set(objective_answers.METHODS)
    assert rows.groupby("alpha").request.apply(list).to_dict() == {0: [*range(8)], 0.25: [*range(8)]}
    assert set(rows.m) <= set(levels)
    assert (rows.kept <= rows.prompt_tokens).all()
    assert (rows.kept[rows.p == 1] == rows.prompt_tokens[rows.p == 1]).all()
    assert (rows.service_s >= rows.ttft_s).all()
    assert (rows.ttft_s > rows.scoring_s + rows.decision_s).all()
    assert (rows.queued_ttft_s >= rows.ttft_s - 1e-9).all()
    assert (rows.switched[1:8].to_numpy() == (np.diff(rows.m[:8]) != 0)).all()
    whole = rows[(rows.ttft == 1) & (rows.tpot == 1)]
    assert set(zip(whole.p, whole.m, strict=True)) == {(1, 100)}  # the heaviest is feasible


def test_the_reference_s_answers_are_used_unless_they_are_to_be_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(objectives, "REFERENCE", tmp_path)
    assert objectives._reference(False) == {}
    (tmp_path / "manifest.json").write_text("{}")
    for name in objectives.KNOWN:
        pd.DataFrame({"x": [1]}).to_csv(tmp_path / f"{name}.csv")
    assert set(objectives._reference(False)) == set(objectives.KNOWN)
    assert objectives._reference(True) == {}
    assert objectives.tables(True) == ["prompts"]
    assert objectives.tables(False)[1:] == [f"measured/objectives/{name}" for name in objectives.KNOWN]
    assert SimpleNamespace(**defaults("measure_objectives")).objectives[-1] == [0.2, 0.5]
