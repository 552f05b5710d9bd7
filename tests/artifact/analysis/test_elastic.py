"""What a smaller size of a model costs and buys, from small made measurements."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from artifact.analysis import elastic
from artifact.measure import elastic_memory
from artifact.measure.elastic import ON_DEMAND, RESIDENT
from artifact.measure.elastic_scores import ALIKE, FULL, ORDERED, STORED
from artifact.measure.store import Measured


def measured(**tables):
    return Measured(Path(), {"settings": {}, "disturbed": ""}, tables)


def scores():
    """Of 20 answers of 10 tokens each the nats per token: 2 for the whole model, 3 in order, 2.5 with rank 8, ..."""
    each = {(100, STORED): 2.0, (100, ORDERED): 2.0}
    each |= {(80, STORED): 4.0, (80, ALIKE): 3.5, (80, ORDERED): 3.0, (80, "rank 8"): 2.5, (80, FULL): 3.5}
    each |= {(40, STORED): 6.0, (40, ALIKE): 4.5, (40, ORDERED): 5.0, (40, "rank 8"): 5.0, (40, FULL): 4.0}
    rows = [
        {"percent": percent, "method": method, "answer": k, "tokens": 10, "nats": 10 * nats}
        for (percent, method), nats in each.items()
        for k in range(20)
    ]
    return pd.DataFrame(rows)


def test_perplexity_and_the_part_of_the_loss_that_is_closed():
    table = elastic.perplexity(measured(perplexity=scores()), 50, 0).set_index(["percent", "method"])
    assert table.perplexity[80, ORDERED] == pytest.approx(np.exp(3))
    assert table.perplexity_low[80, ORDERED] == pytest.approx(np.exp(3))  # all answers are alike
    assert table.closed[80, "rank 8"] == pytest.approx(50)
    assert table.closed[80, FULL] == pytest.approx(-50)
    assert np.isnan(table.closed[100, STORED])
    assert elastic.better(table.reset_index()).to_dict("index") == {
        80: {"order": True, "anchors": True},
        40: {"order": True, "anchors": False},
    }


def test_a_method_that_was_tried_at_one_level_has_no_line():
    table = pd.concat(
        [scores(), scores()[lambda t: t.method == FULL].query("percent == 80").assign(method="rank 16")]
    )
    drawn = elastic.lines(elastic.perplexity(measured(perplexity=table), 50, 0))
    assert set(drawn.method) == {STORED, ALIKE, ORDERED, "rank 8", FULL}
    for _, line in drawn.groupby("method"):
        assert sorted(line.percent) == [40, 80, 100]
        assert line.perplexity[line.percent == 100].item() == pytest.approx(np.exp(2))


def test_recovery_is_told_at_the_level_nearest_80_percent():
    rows = [(80, "8", "layer", k, 0.1, 0.05) for k in (3, 4)] + [(80, "full", "layer", k, 0.4, 0.2) for k in (3, 4)]
    rows += [(40, "8", "layer", 3, 0.3, 0.3)]
    columns = ["percent", "rank", "towards", "layer", "explained", "held_out"]
    one = measured(perplexity=scores(), recovery=pd.DataFrame(rows, columns=columns))
    table = elastic.recovery(one, elastic.perplexity(one, 50, 0))
    assert table["rank"].tolist() == ["8", "full"]
    assert table.held_out.tolist() == pytest.approx([0.05, 0.2])
    assert table.closed.tolist() == pytest.approx([50, -50])


def test_a_task_at_chance_for_the_whole_model_is_named():
    rng = np.random.default_rng(0)
    rows = []
    for task, options, known in (("easy", 4, 0.9), ("hard", 2, 0.5)):
        for k in range(200):
            chosen = {(100, STORED): rng.random() < known, (40, ORDERED): rng.random() < 1 / options}
            for (percent, method), right in chosen.items():
                rows.append((task, percent, method, k, options, int(right)))
    table = pd.DataFrame(rows, columns=["task", "percent", "method", "question", "options", "right"])
    found = elastic.accuracy(measured(accuracy=table), 500, 0).set_index(["task", "percent"])
    assert found.above.to_dict() == {
        ("easy", 100): True,
        ("easy", 40): True,
        ("hard", 100): False,
        ("hard", 40): False,
    }
    assert found.chance["easy", 40] == 25
    assert found.accuracy_low["easy", 100] < found.accuracy["easy", 100] < found.accuracy_high["easy", 100]


def times():
    levels = pd.DataFrame({"percent": [100, 40], "share": [1.0, 0.4], "head_bytes": 30, "block_bytes": [70, 28]})
    latency = pd.DataFrame(
        [(100, 16, 0.1, 0.010), (100, 64, 0.4, 0.010), (40, 16, 0.05, 0.0058), (40, 64, 0.16, 0.008)],
        columns=["percent", "prompt_tokens", "ttft_s", "tpot_s"],
    ).assign(order=ORDERED, repeat=0)
    return {"levels": levels, "latency": latency}


def test_latency_is_held_against_the_share_of_the_head():
    table = elastic.latency(measured(**times())).set_index(["percent", "prompt_tokens"])
    assert elastic.head_share(measured(**times())) == 0.3
    assert table.expected[40, 16] == pytest.approx(0.58)
    assert table.off[40, 16] == pytest.approx(0)
    assert table.off[40, 64] == pytest.approx(0.8 / 0.58 - 1)
    assert table.ttft_off[40, 16] == pytest.approx(0.25)
    some = table.loc[[(100, 16), (40, 16)]].reset_index()
    assert elastic.fixed_share(some) == pytest.approx(0.3)


def test_a_switch_costs_what_the_first_token_comes_later():
    rows = [(RESIDENT, 100, 40, 0.052, 0), (RESIDENT, 40, 40, 0.05, 0), (RESIDENT, 40, 100, 0.099, 0)]
    rows += [(RESIDENT, 100, 100, 0.1, 0), (ON_DEMAND, 100, 40, 0.15, 0.08), (ON_DEMAND, 40, 40, 0.05, 0)]
    switching = pd.DataFrame(rows, columns=["how", "from", "to", "ttft_s", "load_s"])
    pairs = elastic.switching(measured(switching=switching, **times()))
    assert pairs.later_s.tolist() == pytest.approx([0.002, -0.001, 0.1])
    table = elastic.switched(pairs).set_index("how")
    assert table.share[RESIDENT] == pytest.approx(1)  # 0.5 ms, in the median of two pairs, of 50 ms
    assert table.load_ms[ON_DEMAND] == pytest.approx(80)


def test_memory_is_told_beyond_a_process_without_a_model():
    used = {elastic_memory.NO_MODEL: 40, elastic_memory.AS_STORED: 110, elastic_memory.RESIDENT: 250, "100": 120}
    table = elastic.memory(measured(memory=pd.DataFrame(used.items(), columns=["what", "bytes"])))
    assert elastic.times_memory(table) == 3
    assert table.what.tolist() == [elastic_memory.AS_STORED, elastic_memory.RESIDENT, "the whole model in order"]
