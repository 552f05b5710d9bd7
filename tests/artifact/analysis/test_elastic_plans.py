"""DiSCo with an elastic device on the traces: against the races themselves, request by request."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import disco_core as dc
from artifact.analysis import elastic_plans
from artifact.analysis.elastic_plans import ELASTIC, WHOLE, WORK, ElasticStudy
from artifact.data import traces
from artifact.measure.elastic_scores import ORDERED, STORED
from artifact.measure.store import Measured

PREFILL, DECODE = elastic_plans.speeds((100, 70, 40), 0.31)
NATS = {100: 0.0, 70: 0.5, 40: 2.0}
PROMPTS, OUTPUTS = traces.lengths("alpaca"), dc.LengthDistribution([5, 60], [1, 1])
PHONE = dc.DeviceProfile(31.32, 13.93)
STUDY = ElasticStudy(PROMPTS, OUTPUTS, {"phone": PHONE}, PREFILL, DECODE, (0.2, 0.8), 0.6, 3000, NATS)
SERVICE = traces.service("gpt-4o-mini")


@pytest.fixture(scope="module")
def runs():
    return STUDY.run({SERVICE.name: SERVICE})


def drawn():
    """The requests and the server's TTFTs of the study, and the seed of its plans."""
    requests, served, planned = np.random.SeedSequence(0).spawn(3)
    load = dc.Workload.sample(3000, PROMPTS, OUTPUTS, np.random.default_rng(requests))
    return load, SERVICE.ttft.sample(3000, np.random.default_rng(served)), planned


def test_speeds_are_those_of_the_weights_that_are_read():
    assert PREFILL == {100: 1.0, 70: 0.7, 40: 0.4}
    assert [*DECODE.values()] == pytest.approx([1.0, 0.793, 0.586])


def test_the_whole_model_is_plain_disco_and_levels_follow_its_p99(runs):
    load, ttft_s, planned = drawn()
    for row in runs[runs.policy == WHOLE].itertuples():
        constraint = dc.Constraint(row.constrained)
        plan = dc.plan_disco(constraint, PROMPTS, SERVICE.ttft, row.b)
        server = dc.ServerProfile(SERVICE.ttft, 50.0)
        whole = dc.simulate(load, plan, server, PHONE, ttft_s=ttft_s, rng=np.random.default_rng(planned))
        summary = whole.summary()
        assert (row.mean_s, row.p99_s) == pytest.approx((summary["mean_ttft_s"], summary["p99_ttft_s"]))
        assert (row.used, row.work) == pytest.approx((summary["budget_used"], summary["device_share"]))
        assert (row.begun, row.tokens_stays, row.nats_up, row.again) == (0, 0, 0, 0)
        # levels one length after the other, and every request timed with its own level
        ours = runs[(runs.policy == ELASTIC) & (runs.constrained == row.constrained) & (runs.b == row.b)].iloc[0]
        server_s, wait_s = plan.draw(load.prompt_tokens, np.random.default_rng(planned))
        ttft, percents = np.minimum(server_s + ttft_s, np.inf), []
        late_wait = {}
        for length, waits, chance in zip(PROMPTS.tokens, plan.delays_s[1], plan.probability, strict=True):
            late_wait[int(length)] = max(wait for wait, p in zip(waits, chance, strict=True) if p > 0)
        for length in load.prompt_tokens.tolist():
            own = {p: late_wait[length] + length * m / PHONE.prefill_rate for p, m in PREFILL.items()}
            percents.append(max([p for p, at in own.items() if at <= 0.6 * row.p99_s], default=40))
        percents = np.array(percents)
        device_s = wait_s + load.prompt_tokens * percents / 100 / PHONE.prefill_rate
        first = np.minimum(ttft, device_s)
        assert ours.p99_s == pytest.approx(np.sort(first)[int(np.ceil(0.99 * 3000)) - 1])
        assert ours.mean_s == pytest.approx(first.mean())
        small = (device_s < ttft) & (percents < 100)
        total = load.output_tokens.sum()
        assert ours.begun == pytest.approx(small.mean())
        assert ours.tokens_stays == pytest.approx(load.output_tokens[small].sum() / total)
        lost = np.array([NATS[p] for p in percents.tolist()])
        assert ours.nats_stays == pytest.approx((load.output_tokens * lost)[small].sum() / total)


def test_elasticity_is_never_slower_and_both_budgets_are_kept(runs):
    wide = runs.pivot(index=["constrained", "b"], columns="policy")
    for value in ("mean_s", "p99_s"):
        assert (wide[value][ELASTIC] <= wide[value][WHOLE]).all()
    assert (wide.used[ELASTIC] == wide.used[WHOLE]).all()
    device = wide.loc["device"]
    assert wide.loc["server"].used[WORK].isna().all()
    assert device.work[WORK][0.2] == pytest.approx(0.2, abs=0.02)  # 3,000 requests
    assert (device.used[WORK][0.8], device.work[WORK][0.8] < 0.8) == (1, True)  # every device starts at once
    assert (device.used[WORK] > device.used[ELASTIC]).all()
    assert (device.mean_s[WORK] < device.mean_s[ELASTIC]).all()
    assert (device.work[ELASTIC] < device.used[ELASTIC]).all()


def test_an_answer_that_moves_loses_less(runs):
    ours = runs[runs.policy != WHOLE]
    assert (ours.tokens_up < 0.5 * ours.tokens_stays).all()
    assert (ours.nats_up < ours.nats_stays).all()
    assert (ours.again > 0).all()
    assert (ours.tokens_server.isna() == (ours.constrained == "server")).all()
    assert (ours.tokens_server.dropna() <= ours.tokens_stays[ours.constrained == "device"]).all()


def test_pairs_are_averaged_over_budgets(runs):
    table = elastic_plans.pairs(runs).set_index("constrained")
    for constrained, part in runs.groupby("constrained"):
        means = part.groupby("policy").p99_s.mean()
        assert table.p99_cut[constrained] == pytest.approx(100 * (1 - means[ELASTIC] / means[WHOLE]))
    assert len(elastic_plans.pairs(runs[runs.constrained == "device"], WORK)) == 1


def test_a_looser_objective_cuts_less_and_loses_less():
    study = replace(STUDY, budgets=(0.5,), requests=1000, equal_work=False)
    objectives = (1.0, 0.6, 0.2)
    runs = {one: replace(study, objective=one).run({SERVICE.name: SERVICE}) for one in objectives}
    assert set(runs[0.6].policy) == {WHOLE, ELASTIC}
    found = elastic_plans.frontier(runs)
    assert len(found) == 3 * (3 + 2)
    for _, part in found.groupby(["constrained", "move"]):
        for column in ("p99_cut", "tokens", "nats"):
            assert part[column].is_monotonic_increasing, column


def test_the_loss_of_levels_comes_from_the_measurement():
    nats = {(100, STORED): 2.0, (100, ORDERED): 2.1, (80, ORDERED): 2.5, (40, ORDERED): 4.0, (40, STORED): 9.0}
    rows = [
        {"percent": p, "method": m, "answer": k, "tokens": 10, "nats": 10 * x}
        for (p, m), x in nats.items()
        for k in range(3)
    ]
    measured = Measured(Path(), {"settings": {}, "disturbed": ""}, {"perplexity": pd.DataFrame(rows)})
    found = elastic_plans.level_nats(measured, (100, 90, 80, 60, 30))
    assert found == pytest.approx({100: 0.0, 90: 0.25, 80: 0.5, 60: 1.25, 30: 2.0})


def test_without_a_measurement_the_loss_is_not_known(tmp_path):
    assert elastic_plans.reference_nats(tmp_path, PREFILL) is None
    runs = replace(STUDY, nats=None, budgets=(0.5,), requests=100).run({SERVICE.name: SERVICE})
    assert not [column for column in runs if column.startswith("nats")]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"objective": 0.0}, "objective"),
        ({"objective": 1.5}, "objective"),
        ({"prefill": {80: 0.8}, "decode": {80: 0.9}}, "whole model, 100 %"),
        ({"nats": {100: 0.0}}, "nats must be given"),
        ({"requests": 0}, "requests"),
    ],
)
def test_a_mistake_is_one_clear_line(other, said):
    with pytest.raises(dc.InputError, match=said):
        replace(STUDY, **other)


def test_a_level_is_a_percent():
    with pytest.raises(dc.InputError, match="a level must be finite and above 0, got 0"):
        elastic_plans.speeds((100, 0), 0.31)


def test_speeds_of_a_machine_are_known_where_all_levels_were_timed(tmp_path):
    prefill, decode = elastic_plans.reference_speeds("data/measured", (100, 60, 30))
    assert prefill[100] == decode[100] == 1
    assert 0 < prefill[30] < prefill[60] < 1
    assert 0 < decode[30] < decode[60] < 1
    assert elastic_plans.reference_speeds("data/measured", (100, 55)) is None
    assert elastic_plans.reference_speeds(tmp_path, (100,)) is None


def test_live_cuts_are_of_the_same_prompts():
    """Levels halve every TTFT of the device alone, and change nothing where the server answers."""
    rng = np.random.default_rng(0)
    rows = []
    for request, first_s in enumerate(rng.uniform(0.5, 2, 30)):
        for policy, winner, ratio in (("DiSCo-S", "server", 1.0), (elastic_plans.ALONE, "server", 0.5)):
            for device, times in (("whole", 1.0), ("levels", ratio)):
                about = {"policy": policy, "device": device, "request": request, "level": 100 if times == 1 else 50}
                about |= {"ttft_s": first_s * times, "predicted_s": first_s * times, "winner": winner}
                about["failures"] = None
                if request == 7 and times < 1:  # an empty answer: the whole model had to begin again
                    about |= {"ttft_s": 50.0, "winner": "device", "failures": "device: it ended without a token"}
                rows.append(about | {"migrated_at": 3 if times < 1 else 0, "delay_num": 0})
    found = elastic_plans.raced({"races": pd.DataFrame(rows)}, 200, 0).set_index("policy")
    assert found.loc["DiSCo-S", ["cut", "cut_low", "cut_high", "simulated", "begun", "moved"]].tolist() == [0] * 6
    alone = found.loc[elastic_plans.ALONE]
    assert alone[["cut_others", "simulated"]].tolist() == pytest.approx([50, 50])
    assert alone.cut < 0 < alone.p90_cut < 50  # the empty answer is beyond P90
    assert alone[["begun", "moved", "m"]].tolist() == pytest.approx([100 * 29 / 30, 100, 50])
    assert alone[["empty", "tried"]].tolist() == [1, 30]
    assert found.loc["DiSCo-S", ["empty", "tried"]].tolist() == [0, 0]
    assert elastic_plans.shown(found.reset_index())["empty answers"].tolist() == ["0 of 0", "1 of 30"]
