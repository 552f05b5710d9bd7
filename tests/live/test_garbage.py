"""A stream leaves no reference cycle behind: nothing waits for the collector, whose pauses delay other streams."""

import asyncio
import gc

import pytest

import disco_core as dc
from disco_core.systems.pd_device import plan_together
from tests.helpers.replay import ReplayEndpoint


class MoveAt(dc.Rule):
    """Hands over to the device after so many tokens."""

    target = dc.End.DEVICE

    def __init__(self, at):
        self.at = at

    def decide(self, state):
        return dc.HAND_OVER if len(state.record.tokens) >= self.at else dc.STAY


async def one(plan, rule, leave_at, hold):
    both = {name: ReplayEndpoint(0.0, [0.0], 8, name=name) for name in ("server", "device")}
    live = dc.stream([0] * 5, plan=plan, **both, rule=rule, max_tokens=8, reading_rate=1e9)
    if hold:
        await live.__aenter__()
    async for token in live:
        if token.index == leave_at:
            break
    await live.aclose()


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("leave_at", [None, 3])
@pytest.mark.parametrize("rule", [None, MoveAt(4)])
@pytest.mark.parametrize("plan", [dc.plan_server_only(), plan_together()])
def test_a_stream_leaves_no_cycle(plan, rule, leave_at, hold):
    async def many():
        await one(plan, rule, leave_at, hold)
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                await one(plan, rule, leave_at, hold)
            return gc.collect()
        finally:
            gc.enable()

    assert asyncio.run(many()) == 0
