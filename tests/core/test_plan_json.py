"""A plan as text: what comes back draws the same delays, bit by bit, and a text that is no plan is one line."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import disco_core as dc

SECONDS = st.floats(0, 1e6, allow_nan=False)


@st.composite
def plans(draw):
    lengths = sorted(draw(st.sets(st.integers(1, 2**31 - 1), min_size=1, max_size=6)))
    choices = draw(st.integers(1, 4))
    shape = len(lengths), choices
    delays = draw(arrays.arrays(float, (2, *shape), elements=SECONDS))
    never = draw(arrays.arrays(int, shape, elements=st.integers(0, 2)))  # 2: both start
    for end in (0, 1):
        delays[end][never == end] = np.inf
    weight = draw(arrays.arrays(float, shape, elements=st.floats(0.01, 1)))
    constraint = draw(st.sampled_from([None, *dc.Constraint]))
    budget = float("nan") if constraint is None else draw(st.floats(0, 1))
    name = draw(st.text(st.characters(codec="utf-8"), max_size=12))
    return dc.DispatchPlan(name, lengths, delays, weight / weight.sum(axis=1)[:, None], constraint, budget)


@given(plans(), st.integers(0, 9))
def test_a_plan_comes_back_as_it_was(plan, seed):
    text = plan.to_json()
    back = dc.DispatchPlan.from_json(text)
    assert (back.name, back.constraint) == (plan.name, plan.constraint)
    np.testing.assert_equal(back.budget, plan.budget)
    for field in ("prompt_tokens", "delays_s", "probability"):
        np.testing.assert_array_equal(getattr(back, field), getattr(plan, field))
    prompts = np.random.default_rng(seed).integers(1, 10_000, 20)
    drawn = [one.draw(prompts, np.random.default_rng(seed)) for one in (plan, back)]
    np.testing.assert_array_equal(*drawn)
    assert back.to_json() == text
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON that other languages read"))


def test_the_plans_of_the_paper_come_back():
    ttft = dc.TTFTDistribution([0.3, 0.2, 0.2, 4.0])
    for plan in (
        dc.plan_server_only(),
        dc.plan_device_only(),
        dc.plan_stochastic(0.3, dc.Constraint.DEVICE, both=True),
        dc.plan_device_constrained([10, 20, 30], ttft, 0.4),
        dc.plan_server_constrained([10, 20, 30], 0.4),
    ):
        back = dc.DispatchPlan.from_json(plan.to_json())
        np.testing.assert_array_equal(back.delays_s, plan.delays_s)


def changed(**other):
    return json.dumps(json.loads(dc.plan_server_constrained([10, 20], 0.4).to_json()) | other)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[1, 2]", "no plan"),
        ("{}", "no plan"),
        (changed(format="disco_core.Rule"), "no plan"),
        (changed(version=2), "version 2"),
        (changed(version=True), "version True"),
        (changed(version="1"), "version '1'"),
        (changed(probabilty=[[1]]), "probabilty"),
        (json.dumps({"format": "disco_core.DispatchPlan", "version": 1}), "without budget"),
        (changed(name=3), "name"),
        (changed(prompt_tokens=[20, 10]), "ascend"),
        (changed(prompt_tokens=["10", 20]), "prompt_tokens"),
        (changed(prompt_tokens=[[10], 20]), "prompt_tokens"),
        (changed(prompt_tokens=[10.5, 20]), "10.5"),
        (changed(delays_s=3), "delays_s"),
        (changed(delays_s=[[["0"], [0]], [[0], [0]]]), "delays_s"),
        (changed(delays_s=[[[-1], [0]], [[0], [0]]]), "delays_s"),
        (changed(delays_s=[[[None], [0]], [[None], [0]]]), "neither"),
        (changed(probability=[[0.5], [1]]), "sum to 1"),
        (changed(probability=[[None], [1]]), "probability"),
        (changed(constraint="phone"), "'phone'"),
        (changed(constraint=["device"]), "device"),
        (changed(budget=2), "budget"),
        (changed(budget=None), "budget"),
        (changed().replace("0.4", "NaN"), "NaN"),
        (changed().replace("0.4", "1e999"), "budget"),
    ],
)
def test_a_text_that_is_no_plan_is_one_line(text, told):
    with pytest.raises(dc.InputError) as error:
        dc.DispatchPlan.from_json(text)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [None, 3, {"name": "plan"}, object()])
def test_what_is_no_text_is_refused(value):
    with pytest.raises(dc.InputError, match="text"):
        dc.DispatchPlan.from_json(value)
