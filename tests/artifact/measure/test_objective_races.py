"""Races of DiSCo with the whole model and with levels on the device."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.data import model, traces
from artifact.measure import objective_answers, objective_races
from artifact.measure.answers import run_in_thread
from artifact.measure.objective_races import ALONE, ANSWER_TOKENS, DEVICES, PLANS
from disco_core.errors import InputError
from disco_core.latency import DeviceProfile
from disco_core.systems.elastic import load_levels
from tests.helpers.measuring import a_run

PROFILES = {percent: DeviceProfile(250 / percent * 100, 1 / (0.003 + percent / 20_000)) for percent in (100, 60, 30)}
SETTINGS = SimpleNamespace(service="gpt-4o-mini", budget=0.5, deadline=0.6, seed=0)
LENGTHS = [40, 120, 200, 300]


def every():
    return objective_races.compared(PROFILES, LENGTHS, traces.service("gpt-4o-mini").ttft, SETTINGS)


def test_both_devices_of_a_plan_wait_alike_and_the_levels_keep_the_deadline_where_one_can():
    found = {(one.policy, one.on_device): one for one in every()}
    assert set(found) == {(policy, device) for policy in PLANS for device in DEVICES}
    for policy in PLANS:
        whole, levels = found[policy, "whole"], found[policy, "levels"]
        assert levels.plan is whole.plan
        assert set(whole.device.percent.tolist()) == {100}
        assert (levels.device.ttft(LENGTHS) <= whole.device.ttft(LENGTHS)).all()
    # alone, the longest prompt is P99: its deadline asks for 60 % of the prefill
    assert found[ALONE, "levels"].device.level([300])[0] == 60
    assert found[ALONE, "levels"].device.level([40])[0] == 100
    assert found[ALONE, "levels"].rule is not None
    assert found[ALONE, "whole"].rule is None


@given(
    st.floats(0.01, 3), st.sampled_from([0.0, 0.2, 1.0, np.inf]), st.sampled_from([0.0, np.inf]), st.integers(1, 400)
)
def test_the_first_token_is_predicted_from_the_delay_and_the_waits(server_s, wait_s, server_wait_s, tokens):
    if np.isinf(wait_s) and np.isinf(server_wait_s):
        return
    one = next(one for one in every() if one.on_device == "levels" and one.policy == "DiSCo-D")
    predicted = objective_races.predicted_ttft_s(one, tokens, server_s, np.array([server_wait_s, wait_s]))
    device_s = wait_s + one.device.ttft([tokens])[0]
    expected = server_s + server_wait_s
    # the device starts only if it is to start before the server's first token
    assert predicted == pytest.approx(min(expected, device_s) if wait_s < expected else expected)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"service": "gpt-9"}, "gpt-9"),
        ({"budget": 2}, "budget"),
        ({"deadline": 0}, "deadline must be finite and above 0"),
        ({"deadline": 1.1}, "deadline"),
    ],
)
def test_wrong_settings_are_one_line(changed, told):
    with pytest.raises(InputError, match=told) as caught:
        objective_races.check(SimpleNamespace(**vars(SETTINGS) | changed))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_prompts_are_raced_with_the_whole_model_and_with_levels(tmp_path, levels_folder):
    levels = load_levels(levels_folder, model.smollm2_path())
    profiles = {m: DeviceProfile(25_000 / m, 100.0) for m in levels}
    prompts = [one.ids for one in objective_answers.plain_prompts([40, 80], 0)]
    run = a_run(tmp_path, "objectives")
    table = run_in_thread(objective_races.raced(run, levels, profiles, prompts))["races"]
    assert len(table) == 2 * len(PLANS) * len(DEVICES)
    assert not table.failures.any()
    assert (table.tokens <= ANSWER_TOKENS).all()
    assert (table.tokens > 0).all()
    assert set(table[table.device == "whole"].level) == {100}
    # the server's first token is not before the delay that is emulated
    by_server = table[(table.winner == "server") & (table.policy != ALONE)]
    assert (by_server.ttft_s >= by_server.held_s).all()
    moved = table[(table.policy == ALONE) & (table.level < 100)]
    assert moved.migrated_at.notna().any()
