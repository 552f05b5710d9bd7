"""The study of a pair: what is recommended in plain cases and in odd ones, and that its parts agree."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from artifact.pair import sentences, tables
from artifact.pair.pair import LIVE, Pair, Prices
from artifact.pair.readers import Requests
from artifact.pair.splits import DEVICE, DISCO, OPTIMAL, POLICIES, SERVER
from artifact.pair.study import Study, headline, recommend, study
from disco_core.cost import Constraint
from disco_core.latency import DeviceProfile

COUNT = 12  # splits


def a_pair(n=120, *, seed=0, ttft_s=None, lengths=None, prices=None, rate=40.0, outputs=True, **requests):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 90, n) if lengths is None else np.asarray(lengths)
    given = {
        "arrival_s": np.arange(n) * 2.0,
        "prompt_tokens": lengths,
        "output_tokens": rng.integers(5, 60, n).astype(float) if outputs else np.full(n, np.nan),
        "ttft_s": rng.lognormal(-0.7, 0.8, n) if ttft_s is None else np.broadcast_to(ttft_s, n).astype(float),
        "failed": 0,
        "form": "csv",
        "began_s": None,
        "notes": (),
    }
    return Pair(Requests(**given | requests), rate, DeviceProfile(80.0, 20.0, 0.1), prices=prices)


def studied(pair, constraint=None) -> Study:
    return replace(study(pair, constraint), count=COUNT)


def everything(found):
    """All that the notebook asks of a study, as text."""
    parts = [sentences.on_length(found), sentences.line(found), sentences.flips(found), sentences.device_first(found)]
    parts += [sentences.when(found), sentences.answers(found), found.headline]
    parts += [found.recommendation.why, found.recommendation.sure, tables.over_time(found).to_string()]
    parts += [tables.policies(found).iloc[:, :5].to_string()]
    if found.cost is not None:
        parts.append(sentences.saving(found))
    text = "\n".join(parts)
    assert not re.search(r"\bnan\b|(?<![\d.])-0(?:\.0*)?(?![.\d])|\binf\b", text), text
    return text


def test_a_server_that_is_always_first_needs_no_device():
    one = studied(a_pair(ttft_s=0.05), Constraint.DEVICE).recommendation
    assert (one.policy, one.budget, one.plan.name) == (SERVER, 0.0, "server only")
    assert "less than 2 %" in one.why


def test_a_device_that_is_always_first_needs_no_server():
    found = studied(a_pair(ttft_s=5.0, prices=Prices(0.15, 0.6)))
    one = found.recommendation
    assert found.constraint is Constraint.SERVER
    assert (one.policy, one.budget, one.plan.name) == (DEVICE, 0.0, "device only")
    assert found.headline.startswith("Device only, without DiSCo: mean 5 -> ")
    everything(found)


def test_a_mixed_pair_gets_a_budget_and_reads_well():
    found = studied(a_pair(), Constraint.DEVICE)
    one = found.recommendation
    assert 0 < one.budget <= 1
    assert one.policy in (DISCO, OPTIMAL)
    assert one.plan.budget == one.budget
    assert one.rule is None
    assert "the slowest of them" not in one.sure
    everything(found)


def test_of_ten_requests_p99_decides_nothing_and_that_is_said():
    for seed in range(5):
        found = studied(a_pair(10, seed=seed), Constraint.DEVICE)
        assert found.recommendation.policy in (DISCO, SERVER)
        assert "P99 cannot be known from 10 requests" in found.recommendation.sure
        everything(found)


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (a_pair(lengths=np.full(120, 30)), "nothing is known of a dependence"),
        (a_pair(ttft_s=0.6), "nothing is known of a dependence"),
        (a_pair(lengths=np.full(120, 30), ttft_s=0.6), "nothing is known of a dependence"),
        (a_pair(prices=Prices(0.0, 0.0)), "the device is the constrained endpoint"),
        (a_pair(prices=Prices(0.15, 0.6, watt_hours=0.0)), "the server is the constrained endpoint"),
        (a_pair(prices=Prices(0.15, 0.6, watt_hours=2000.0)), "the device is the constrained endpoint"),
        (a_pair(prices=Prices(0.15, 0.6), rate=float("nan")), "the server's pace is assumed, 50 tokens/s"),
        (a_pair(prices=Prices(0.15, 0.6), outputs=False), "Alpaca's lengths"),
        (a_pair(failed=1), "b ="),
        (a_pair(lengths=np.arange(5, 125), ttft_s=0.05 + np.arange(120) / 50), "TTFT depends on the prompt"),
    ],
)
def test_odd_pairs_are_studied_too(pair, said):
    assert said in everything(studied(pair))


def test_prices_decide_and_where_they_do_not_that_is_said():
    for prices, constraint, why in (
        (None, Constraint.DEVICE, "no prices were given"),
        (Prices(0.15, 0.6), Constraint.SERVER, "at these prices"),
        (Prices(0.15, 0.6, watt_hours=1e6), Constraint.DEVICE, "at these prices"),
        (Prices(0.15, 0.6, watt_hours=1.5), Constraint.DEVICE, "overlap"),
    ):
        found = study(a_pair(prices=prices))
        assert found.constraint is constraint
        assert why in found.chosen
    assert study(a_pair(), Constraint.SERVER).constraint is Constraint.SERVER
    assert study(replace(a_pair(), about={"constraint": "server"})).constraint is Constraint.SERVER


def test_the_price_at_which_it_flips_flips_it():
    pair = a_pair(prices=Prices(0.15, 0.6, watt_hours=2.0))
    low, high = map(float, re.findall(r"\$([\d.]*\d)", sentences.flips(studied(pair)))[:2])
    for kwh, constraint in ((0.98 * low, Constraint.SERVER), (1.02 * high, Constraint.DEVICE)):
        found = study(replace(pair, prices=Prices(0.15, 0.6, 2.0, kwh)), None)
        assert (found.constraint, found.chosen) == (constraint, "at these prices")
    between = study(replace(pair, prices=Prices(0.15, 0.6, 2.0, (low + high) / 2)))
    assert "overlap" in between.chosen


def test_a_record_over_hours_is_shown_by_hour():
    n = 120
    began_s = 1_700_002_800.0 - 600  # ten minutes before a full hour
    found = studied(a_pair(n, arrival_s=np.linspace(0, 5 * 3600, n), began_s=began_s))
    shown = tables.over_time(found)
    hour = int(began_s // 3600 % 24)
    assert list(shown["when"]) == sorted(f"{(hour + k) % 24:02d}:00" for k in range(6))
    assert shown["requests"].sum() == n
    first = (found.pair.requests.arrival_s < 600).sum()
    assert shown.set_index("when").loc[f"{hour:02d}:00", "requests"] == first
    assert sentences.when(found).startswith("by hour")
    everything(found)


def test_a_short_record_or_one_without_times_is_shown_by_quarters():
    shown = tables.over_time(studied(a_pair(40)))
    assert list(shown["requests"]) == [10] * 4
    alike = tables.over_time(studied(a_pair(40, arrival_s=np.zeros(40))))
    assert list(alike["requests"]) == [40]


@pytest.mark.parametrize("prices", [None, Prices(0.15, 0.6), Prices(0.15, 0.6, watt_hours=2000.0)])
def test_the_headline_says_what_the_table_says(prices):
    found = studied(a_pair(prices=prices))
    numbers = [float(one) for one in re.findall(r"(?<![\w.])\d[\d.e-]*", found.headline.replace("1,000", ""))]
    rows = tables.policies(found).set_index("policy")
    before, after = rows.loc[SERVER], rows.loc[found.recommendation.policy]
    expected = [found.recommendation.budget]
    for name in ("mean TTFT (s)", "P99 TTFT (s)", *(["$ per 1,000"] if prices else [])):
        expected += [before[name], after[name]]
    numbers = [one for one in numbers if one != 99]  # of P99
    assert numbers == pytest.approx(expected, rel=5.1e-3, abs=1e-12)
    assert f"the {found.constraint.value} is the constrained endpoint" in found.headline


def test_costs_of_one_endpoint_are_its_tokens_at_its_prices():
    prices = Prices(0.15, 0.6, watt_hours=30.0)
    found = studied(a_pair(prices=prices, outputs=False, output_tokens=np.full(120, 25.0)))
    mean, cost = found.length.mean(), found.cost
    rows = found.costs.set_index(["policy", "migration"])["$ per 1,000"]
    assert rows[SERVER, "no"] == pytest.approx(1000 * (mean * 0.15 + 25 * 0.6) / 1e6)
    device = 1000 * (mean * cost.device_prefill + 25 * cost.device_decode)
    assert device > 0
    assert rows[DEVICE, "no"] == pytest.approx(device)
    assert set(found.costs["policy"]) == set(POLICIES)
    assert found.price(DISCO) == rows[DISCO, "yes"]


def test_bands_hold_their_mean_and_cuts_are_against_server_only():
    found = studied(a_pair(60))
    for value in ("mean_s", "p99_s"):
        assert (found.policies[f"{value}_low"] <= found.policies[value] + 1e-12).all()
        assert (found.policies[value] <= found.policies[f"{value}_high"] + 1e-12).all()
    cuts = found.cuts[found.cuts["policy"] == SERVER]
    assert np.allclose(cuts[["mean_cut", "p99_cut"]], 0)
    one = found.halves[(found.halves["split"] == 3) & np.isclose(found.halves["b"], 0.3)].set_index("policy")[
        "mean_s"
    ]
    row = found.cuts[(found.cuts["split"] == 3) & np.isclose(found.cuts["b"], 0.3) & (found.cuts["policy"] == DISCO)]
    assert row["mean_cut"].item() == pytest.approx(100 * (1 - one[DISCO] / one[SERVER]))


def test_a_recommendation_is_the_study_s_and_made_once():
    pair = a_pair(20)
    assert recommend(pair, Constraint.DEVICE) is recommend(pair, Constraint.DEVICE)
    assert headline(pair, Constraint.DEVICE) == study(pair, Constraint.DEVICE).headline


def live(before, after):
    rows = []
    for request, times in enumerate(zip(before, after, strict=True)):
        for policy, ttft_s in zip((SERVER, "recommended"), times, strict=True):
            rows.append([request, policy, 20, ttft_s, 8, "server", 0, np.nan, ""])
    return pd.DataFrame(rows, columns=LIVE)


def test_the_measured_cut_is_that_of_the_answers():
    rng = np.random.default_rng(0)
    before = rng.uniform(0.8, 1.2, 40)
    pair = a_pair().with_live(live([*before, 1.0], [*before / 2, np.nan]))  # the last has no token under one
    shown = tables.live(studied(pair)).set_index("")
    measured = shown.loc["measured"]
    assert measured["prompts"] == 40
    assert measured["server only, mean TTFT (s)"] == pytest.approx(before.mean())
    assert (measured["cut (%)"], measured["95 % from"], measured["to"]) == pytest.approx((50, 50, 50))
    noisy = studied(a_pair().with_live(live(before, rng.permutation(before) / 2)))
    low, high = tables.live(noisy).set_index("").loc["measured", ["95 % from", "to"]]
    assert 40 < low < 50 < high < 60
    predicted = tables.live(noisy).set_index("").loc["predicted for these prompts"]
    assert predicted["server only, mean TTFT (s)"] == pytest.approx(noisy.ttft.mean)
    assert 0 < predicted["cut (%)"] < 100


def test_without_live_answers_there_is_no_table():
    assert tables.live(studied(a_pair())).empty
    assert tables.live(studied(a_pair().with_live(live([1.0], [0.5])))).empty
    assert tables.live(studied(a_pair().with_live(live([np.nan] * 3, [np.nan] * 3)))).empty
