"""The thresholds of the two plans, against what the plans do with each prompt."""

import numpy as np
import pytest

import disco_core as dc
from artifact.analysis import plans
from artifact.data import traces


@pytest.mark.parametrize("budget", [0.0, 0.05, 0.4, 1.0])
def test_thresholds_are_those_of_the_plans(budget):
    prompts, ttft = traces.lengths("alpaca"), traces.service("gpt-4o-mini").ttft
    device_plan = dc.plan_device_constrained(prompts, ttft, budget)
    server_plan = dc.plan_server_constrained(prompts, budget)
    table = plans.by_length(device_plan, server_plan, prompts)
    for_device, for_server = plans.thresholds(table)
    _, waits_s = device_plan.draw(prompts.tokens, np.random.default_rng(0))
    assert (waits_s[prompts.tokens <= for_device] == 0).all()
    assert (waits_s[prompts.tokens > for_device + 1] > 0).all()
    server_delay_s, _ = server_plan.draw(prompts.tokens)
    assert (np.isinf(server_delay_s) == (prompts.tokens <= for_server)).all()
    assert table.share_of_prompt_tokens.iloc[-1] == pytest.approx(1)
