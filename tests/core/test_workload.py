"""workload, cost and the checks of arguments: counts, lengths and prices."""

import numpy as np
import pytest

import disco_core as dc
from disco_core import checks


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (0, "at least 1, got 0"),
        (-1, "at least 1, got -1"),
        (0.0, "at least 1, got 0.0"),
        (2.5, "at least 1, got 2.5"),
        (float("nan"), "at least 1, got nan"),
        ("9", "at least 1, got '9'"),
        (None, "at least 1, got None"),
        (True, "at least 1, got True"),
        (2**31, "at most 2147483647, got 2147483648"),
        (float("inf"), "at most 2147483647, got inf"),
    ],
)
def test_a_count_is_named_as_it_was_given(bad, said):
    with pytest.raises(dc.InputError) as caught:
        checks.count(bad, "max_tokens")
    assert str(caught.value) == f"max_tokens must be a whole number of {said}"


@pytest.mark.parametrize("good", [1, 7.0, np.int64(3), np.float64(5), 2**31 - 1])
def test_a_whole_number_of_any_kind_is_a_count(good):
    assert checks.count(good, "max_tokens") == good
    assert type(checks.count(good, "max_tokens")) is int


def test_workload_and_histogram():
    rng = np.random.default_rng(0)
    prompt = dc.LengthDistribution([3, 7], [1, 3])
    load = dc.Workload.sample(100_000, prompt, prompt, rng, rate=4.0)
    assert len(load) == 100_000
    assert load.prompt_tokens.mean() == pytest.approx(prompt.mean, rel=0.01)
    assert load.arrival_s[-1] == pytest.approx(25_000, rel=0.02)
    same = dc.LengthDistribution.of(load.prompt_tokens)
    assert same.counts.sum() == 100_000
    wide = dc.LengthDistribution.of([5, 10_000_000, 5])  # too wide to count cell by cell
    assert wide.tokens.tolist() == [5, 10_000_000]
    assert wide.counts.tolist() == [2, 1]
    with pytest.raises(dc.InputError, match="one entry per request"):
        dc.Workload([0.0], [1, 2], [1])
    with pytest.raises(dc.InputError, match="3 and then 3"):
        dc.LengthDistribution([3, 3], [1, 1])
    for n in (0, -1, 2.5, "ten"):
        with pytest.raises(dc.InputError, match="n must"):
            prompt.sample(n, rng)


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        ((1, 2, 3, 4), dc.Constraint.DEVICE),
        ((3, 4, 1, 2), dc.Constraint.SERVER),
        ((1, 3, 2, 4), None),
        ((1, 2, 2, 3), None),
        ((0, 0, 0, 0), None),
    ],
)
def test_prices_decide_which_endpoint_is_constrained_or_refuse(prices, expected):
    model = dc.CostModel(*(p * 1e-6 for p in prices))
    if expected:
        assert model.constraint is expected
    else:
        with pytest.raises(dc.ConstraintError, match="choose"):
            _ = model.constraint


@pytest.mark.parametrize("bad", [None, -1e-6, float("nan"), float("inf"), "1e-6"])
def test_missing_or_negative_prices_are_named(bad):
    with pytest.raises(dc.InputError, match="device_prefill"):
        dc.CostModel(1e-6, 1e-6, bad, 1e-6)


def test_energy_is_priced_by_the_exchange_rate():
    model = dc.CostModel.from_energy(1e-6, 2e-6, 0.06, 0.35, exchange_rate=1e-5)
    assert (model.device_prefill, model.device_decode) == pytest.approx((6e-7, 3.5e-6))
    with pytest.raises(dc.InputError, match="exchange_rate"):
        dc.CostModel.from_energy(1e-6, 2e-6, 0.06, 0.35, exchange_rate=-1)


def test_lengths_whose_sums_would_overflow_are_refused():
    most = checks.MOST_TOKENS
    with pytest.raises(dc.InputError, match="too large"):
        dc.LengthDistribution([most - 2, most - 1, most], [most] * 3)
