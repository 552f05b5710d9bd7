"""An endpoint whose counts and chat template are asked of a server does not hold up the event loop."""

import asyncio
import time

import numpy as np
import pytest

import disco_core as dc
from tests.helpers.replay import ReplayEndpoint
from tests.helpers.streams import collect


class Remote(ReplayEndpoint):
    """Counts after some seconds, which block."""

    remote = True
    takes_s = 0.0

    def count(self, prompt):
        time.sleep(self.takes_s)
        return super().count(prompt)

    def apply_chat_template(self, prompt):
        time.sleep(self.takes_s)
        return prompt


def remote(takes_s, **options):
    endpoint = Remote(0.05, [0.001], 8, name="server", **options)
    endpoint.takes_s = takes_s
    return endpoint


async def lag_of(answer):
    """What a stream gives, and the largest lag of the loop meanwhile."""
    loop, lags = asyncio.get_running_loop(), [0.0]

    async def watch():
        while True:
            due = loop.time() + 0.01
            await asyncio.sleep(0.01)
            lags.append(loop.time() - due)

    watcher = asyncio.create_task(watch())
    try:
        return *await collect(answer), max(lags)
    finally:
        watcher.cancel()


MESSAGES = [{"role": "user", "content": "Why is the sea salty, and since when, and who found out?"}]


@pytest.mark.parametrize("takes_s", [0.0, 0.6])
def test_a_server_that_hangs_while_it_counts_holds_up_no_other_stream(takes_s):
    server = remote(takes_s)
    device = ReplayEndpoint(0.02, [0.001], 8, name="device", vocabulary="other")
    plan = dc.plan_server_constrained([10, 100], 1.0)  # which needs the server's count
    live = dc.stream(MESSAGES, plan=plan, server=server, device=device, max_tokens=8, wait=False)
    tokens, error, lag_s = asyncio.run(lag_of(live))
    assert (len(tokens), error) == (8, None)
    assert lag_s < 0.3
    assert any("estimated" in one for one in live.record.warnings) == (takes_s > 0.25)


def test_an_estimated_charge_is_corrected_once_the_count_is_there():
    server, device = remote(0.3), ReplayEndpoint(5.0, [0.001], 8, name="device")
    live = dc.stream(MESSAGES, plan=dc.plan_server_only(), server=server, device=device, max_tokens=8, wait=False)
    assert len(asyncio.run(collect(live))[0]) == 8
    assert live.record.prefill == [len(MESSAGES[0]["content"]), 0]


def test_a_charge_that_stays_an_estimate_is_in_the_warnings():
    server, device = remote(0.6), ReplayEndpoint(5.0, [0.001], 8, name="device")
    live = dc.stream(
        MESSAGES,
        plan=dc.plan_server_only(),
        server=server,
        device=device,
        max_tokens=8,
        wait=False,
        confirm_s=0.05,
    )
    assert len(asyncio.run(collect(live))[0]) == 8
    assert live.record.prefill[0] != len(MESSAGES[0]["content"])
    assert "server: its prefill is charged as estimated" in live.record.warnings


def test_what_a_target_gets_as_text_is_counted_by_its_server_after_all():
    """A hand-over to a server of another vocabulary is charged by that server's own count of the text."""
    server = remote(0.05, vocabulary="other")
    device = ReplayEndpoint(0.02, [0.001], 8, name="device")
    cost = dc.CostModel(0.0, 0.0, 1e-6, 1e-6)
    lengths, ttft = dc.LengthDistribution([900], [1]), dc.TTFTDistribution([0.01])
    rule = dc.MigrationRule(cost, lengths, ttft, dc.DeviceProfile(500.0, 25.0), reading_rate=3.0)
    rng = np.random.default_rng(0)
    options = {"server": server, "device": device, "rule": rule, "max_tokens": 8, "wait": False, "rng": rng}
    live = dc.stream(MESSAGES, plan=dc.plan_device_only(), **options)
    tokens, error = asyncio.run(collect(live))
    at = live.record.migrated_at
    assert (len(tokens), error) == (8, None)
    assert at > 0
    assert live.record.prefill[0] == len(MESSAGES[0]["content"]) + sum(len(token.text) for token in tokens[:at])


class MovesAt(dc.Rule):
    """The server prefills from the first token on, and takes over at the third."""

    target = dc.End.SERVER

    def decide(self, state):
        return dc.HAND_OVER if len(state.record.tokens) == 3 else dc.PREFILL


@pytest.mark.parametrize("takes_s", [0.0, 0.1])
def test_a_prefix_cache_is_charged_for_what_is_new_by_the_server_s_count(takes_s):
    """However late the count of its prompt comes: before it takes over, or after."""
    server = remote(takes_s, prefix_cache=True)
    device = ReplayEndpoint(0.05, [0.02], 8, name="device")
    options = {"server": server, "device": device, "rule": MovesAt(), "max_tokens": 8, "wait": False}
    live = dc.stream(MESSAGES, plan=dc.plan_device_only(), **options)
    tokens, error = asyncio.run(collect(live))
    assert (len(tokens), error, live.record.migrated_at) == (8, None, 3)
    assert live.record.prefill == [server.prefilled, device.prefilled]
