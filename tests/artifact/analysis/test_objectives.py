"""What choosing (p, m) costs and buys, from small made measurements."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from artifact.analysis import objectives as analysis
from artifact.elastic import policies
from artifact.elastic.labels import PROMPT_FEATURES
from artifact.measure.objective_answers import CALIBRATION, ENDS, FREQUENCIES, RANDOM, SELF_INFORMATION, TEST
from artifact.measure.store import Measured
from tests.helpers.outcomes import LEVELS, PAIRS, SHARES

ASKED = [[1, 1], [0.6, 0.8], [0.2, 0.2]]  # no level has the TPOT of the last
NAMES = ["<1, 1>", "<0.6, 0.8>", "<0.2, 0.2>"]


def made(seed=0, questions=40, evaluated=True):
    """Answers that are right the more often, the more of the prompt and of the model is there, none when p m < 10."""
    rng = np.random.default_rng(seed)
    prompts = pd.DataFrame({"question": [f"q{k}" for k in range(questions)], "task": "PIQA", "tokens": 100})
    prompts["split"] = np.where(np.arange(questions) % 2, TEST, CALIBRATION)
    prompts["protected"] = 20
    prompts[list(PROMPT_FEATURES)] = rng.normal(size=(questions, 4))
    rows = [
        (q, p, m, int(rng.random() < (p * m > 10) * (0.4 + 0.005 * p * m)))
        for q in prompts.question
        for p, m in PAIRS
    ]
    answers = pd.DataFrame(rows, columns=["question", "p", "m", "right"])
    others = [
        (name, p, q, int(name == ENDS))
        for name in (SELF_INFORMATION, ENDS, RANDOM)
        for p in (0.5, 0.2)
        for q in prompts.question[prompts.split == TEST]
    ]
    compression = pd.DataFrame(others, columns=["method", "p", "question", "right"])
    latency = [(m, l, 0, m * l / 1e4, m / 1e3) for m in LEVELS for l in (50, 100)]
    scoring = [(FREQUENCIES, l, 0, 1e-5 * l) for l in (50, 100)] + [
        (SELF_INFORMATION, l, 0, 3e-3 * l) for l in (50, 100)
    ]
    tables = {
        "prompts": prompts,
        "answers": answers if evaluated else answers[:0],
        "compression": compression,
        "latency": pd.DataFrame(latency, columns=["percent", "prompt_tokens", "repeat", "ttft_s", "tpot_s"]),
        "scoring": pd.DataFrame(scoring, columns=["method", "prompt_tokens", "repeat", "seconds"]),
        "requests": live(),
        "whole": pd.DataFrame({"prompt_tokens": [100], "ttft_s": [1.1], "tpot_s": [0.151]}),
    }
    settings = {"shares": list(SHARES), "objectives": ASKED, "utilisation": 0.5}
    return Measured(Path(), {"settings": settings, "disturbed": ""}, tables)


def test_every_pair_has_its_latency_and_accuracy():
    measured = made()
    table = analysis.pairs(measured, 50, 0).set_index(["p", "m"])
    assert set(table.index) == set(PAIRS)
    scored = (1e-5 * 100 + 1e-4) / 1  # of the whole model's second
    assert table.ttft[0.5, 60] == pytest.approx(0.5 * 0.6 + scored)
    assert table.ttft[0.2, 30] == pytest.approx(0.2 * 0.3 + scored)
    assert table.tpot[0.5, 60] == pytest.approx(0.6)
    right = measured["answers"].merge(measured["prompts"].query("split == @TEST"), on="question")
    each = 100 * right.groupby(["p", "m"]).right.mean()
    assert table.accuracy.to_dict() == pytest.approx(each.to_dict())
    assert (table.accuracy_low <= table.accuracy).all()
    assert (table.accuracy <= table.accuracy_high).all()
    assert analysis.grid(table.reset_index(), "tpot").to_numpy().tolist() == [[0.3, 0.6, 1.0]] * 3
    assert analysis.pairs(made(evaluated=False), 50, 0).accuracy.isna().all()
    assert analysis.tasks(measured).chance.tolist() == [50]


def test_objectives_are_held_against_what_the_paper_s_model_may_have():
    columns = ["ttft", "tpot", "prompts", "feasible", "least_ttft", "least_tpot"]
    measured = made()
    measured.tables["objectives"] = pd.DataFrame(
        [(1, 1, 4, 4, 0.1, 0.5), (0.2, 0.5, 4, 1, 0.1, 0.5)], columns=columns
    )
    table = analysis.possible(measured)
    assert table.feasible_share.tolist() == [100, 25]
    m = (0.5 - 0.02) / 0.98  # of a TPOT of .02 + .98 m
    assert table.m_7b.tolist() == pytest.approx([100, 100 * m])
    assert table.p_7b.tolist() == pytest.approx([100, 100 * 0.2 / m])


def live():
    """Requests of one trace: two at the edge of an objective, one late, and two whose objective cannot be met."""
    rows = [
        ("q1", 1, 1, 1, 1.0, 100, 1.05, 0.101, 1, 1),
        ("q1", 1, 1, 1, 0.5, 60, 0.9, 0.1, 1, 1),
        ("q3", 0.6, 0.8, 1, 0.5, 60, 0.7, np.nan, 0, 1),
        ("q3", 0.2, 0.2, 0, 0.2, 30, 0.1, 0.1, 1, 0),
    ]
    columns = ["question", "ttft", "tpot", "feasible", "p", "m", "ttft_s", "tpot_s", "met_ttft", "met_tpot"]
    rest = {"alpha": 0.25, "prompt_tokens": 100, "queued_ttft_s": [2.0, 1.0, 0.8, 0.1], "switched": [0, 1, 0, 1]}
    rest |= {"whole_ttft_s": 1.1, "whole_tpot_s": 0.11, "scoring_s": 1e-3, "decision_s": 1e-4}
    return pd.DataFrame(rows, columns=columns).assign(**rest)


def test_requests_are_met_where_both_are_and_strictly_where_the_median_of_the_whole_model_is_kept():
    measured = made()
    table = analysis.requests(measured)
    assert table.met.tolist() == [1, 1, 0, 0]
    assert table.met_queued.tolist() == [0, 1, 0, 0]
    assert table.strict.tolist() == [0, 1, 0, 0]  # of the whole model's 1 s and 0.1 s
    assert analysis.whole_factors(measured) == pytest.approx((1.1, 1.51))
    assert "alpha 0.25: 67 %" in analysis.requests_said(measured, table)
    known = measured["answers"].set_index(["question", "p", "m"]).right
    assert table.right.tolist() == [known[one.question, one.p, one.m] for one in table.itertuples()]
    assert analysis.met_share(table) == pytest.approx(200 / 3)
    rows = analysis.met(table, 50, 0).set_index("objective")
    assert rows.met.to_dict() == pytest.approx({NAMES[0]: 100, NAMES[1]: 0, NAMES[2]: 0, analysis.ALL: 200 / 3})
    assert rows.requests.to_dict() == {NAMES[0]: 2, NAMES[1]: 1, NAMES[2]: 1, analysis.ALL: 3}
    assert rows.met_low[analysis.ALL] < 200 / 3 < rows.met_high[analysis.ALL]
    measured.tables["answers"] = measured["answers"][:0]
    assert analysis.requests(measured).right.isna().all()


def test_policies_are_compared_over_the_objectives_that_can_be_met():
    measured = made(questions=120)
    rows = analysis.choices(measured, 0)
    assert set(rows.objective) == set(NAMES)
    assert not rows[rows.objective == NAMES[2]].feasible.any()
    by = analysis.by_objective(rows)
    assert set(by.objective) == set(NAMES[:2])
    table = analysis.compared(rows, 200, 0)
    mean = by.groupby("policy").in_time.mean()
    assert table.set_index("policy").in_time.to_dict() == pytest.approx(mean.to_dict())
    best = analysis.best_baseline(table)
    assert mean[best] == max(mean[name] for name in policies.BASELINES)
    assert analysis.gain(table) == pytest.approx(mean[policies.PAPER] - mean[best])
    assert analysis.gain(table, policies.ORACLE) > 0
    whole = table.set_index("policy").loc[policies.WHOLE_ALWAYS]
    assert whole.met == 50
    assert whole.in_time == pytest.approx(whole.accuracy / 2)
    assert (table.in_time_low <= table.in_time).all()
    assert (table.gain_low <= table.gain_high).all()


def test_a_mean_of_some_rows_is_that_of_the_drawn_ones_that_are_there():
    values = np.array([[1.0, np.nan], [0.0, 1.0], [1.0, 0.0]])
    drawn = analysis._means(values, 40, 3)
    assert drawn[0].tolist() == pytest.approx([2 / 3, 0.5])
    counts = np.random.default_rng(3).multinomial(3, [1 / 3] * 3, size=40)
    for found, times in zip(drawn[1:], counts, strict=True):
        some = np.repeat(values, times, axis=0)
        assert found[0] == pytest.approx(some[:, 0].mean())
        assert np.isnan(some[:, 1]).all() if np.isnan(found[1]) else found[1] == pytest.approx(np.nanmean(some[:, 1]))


def test_a_compression_pays_for_its_scores():
    measured = made()
    table = analysis.compression(measured, 50, 0).set_index(["method", "p"])
    assert table.ttft[analysis.NONE, 1.0] == 1
    assert table.ttft[FREQUENCIES, 0.5] == pytest.approx(0.5 + 0.001)
    assert table.ttft[SELF_INFORMATION, 0.2] == pytest.approx(0.2 + 0.3)  # the question's 20 tokens stay
    assert table.milliseconds[SELF_INFORMATION, 0.5] == pytest.approx(300)
    assert table.milliseconds[ENDS, 0.5] == 0
    assert table.accuracy[ENDS, 0.5] == 100
    assert table.accuracy[RANDOM, 0.2] == 0
    tested = measured["prompts"].question[measured["prompts"].split == TEST]
    known = measured["answers"].query("m == 100 and p == 0.5")
    known = known[known.question.isin(tested)]
    assert table.accuracy[FREQUENCIES, 0.5] == pytest.approx(100 * known.right.mean())
