"""Live answers of a pair: both policies on every prompt, in alternating order, with cost and failures."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

import disco_core as dc
from artifact.pair.live import FAILURES, POLICIES, RECOMMENDED, SERVER_ONLY, _Session, live
from artifact.pair.pair import LIVE, Pair, Prices
from artifact.pair.progress import Progress
from artifact.pair.prompts import load
from artifact.pair.readers import Requests
from disco_core.endpoints.base import Endpoint, Generation, Token, words
from disco_core.errors import RefusedError
from tests.helpers.clock import run

PROMPTS = load(None)[:4]
COST = dc.CostModel(2e-6, 8e-6, 1e-6, 1e-6)


class Timed(Endpoint):
    """Tokens after `ttft_s` and then every `gap_s`; `fails` says of which prompts it takes none."""

    continues = True

    def __init__(self, name, ttft_s, gap_s=0.01, fails=lambda k: False):
        self.name, self.ttft_s, self.gap_s, self.fails, self.asked = name, ttft_s, gap_s, fails, []

    def count(self, prompt):
        return len(words(prompt).split())

    def generate(self, prefix):
        return Generation(self._tokens(prefix))

    async def _tokens(self, prefix):
        self.asked.append(words(prefix.prompt))
        await asyncio.sleep(self.ttft_s)
        if self.fails(len(self.asked) - 1):
            raise RefusedError(self.name, "429: too many requests")
        for k in range(prefix.max_tokens):
            await asyncio.sleep(self.gap_s if k else 0)
            yield Token(len(prefix.generated) + k, f" {k}")


def answered(server, device, plan, rule=None, n=4, progress=None, max_tokens=8):
    policies = {SERVER_ONLY: (dc.plan_server_only(), None), RECOMMENDED: (plan, rule)}

    async def go():
        session = _Session(policies, (server, device), COST, max_tokens, 0)
        return await session.rows([PROMPTS[k % 4] for k in range(n)], progress or Progress(quiet=True))

    return run(go())


def test_every_prompt_has_both_policies_in_alternating_order():
    server, device = Timed("server", 1.0), Timed("device", 0.25)
    table = answered(server, device, dc.plan_device_only())
    assert list(table.columns) == LIVE
    assert table["request"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert table["policy"].tolist() == [*POLICIES] * 4
    np.testing.assert_allclose(table["ttft_s"], [1.0, 0.25] * 4, rtol=1e-9)
    assert table["winner"].tolist() == ["server", "device"] * 4
    assert server.asked == device.asked == [words(prompt) for prompt in PROMPTS]
    assert (table["tokens"] == 8).all()
    assert (table["failure"] == "").all()


def test_the_order_alternates():
    order = []
    server, device = Timed("server", 1.0), Timed("device", 0.25)
    for end in (server, device):
        end.fails = lambda k, name=end.name: order.append(name)
    answered(server, device, dc.plan_device_only())
    assert order == ["server", "device", "device", "server"] * 2


def test_what_both_endpoints_did_is_charged():
    server, device = Timed("server", 1.0), Timed("device", 0.25)
    table = answered(server, device, dc.plan_stochastic(1.0, dc.Constraint.DEVICE, both=True), n=1)
    n = len(words(PROMPTS[0]).split())
    alone, raced = table["cost"]
    assert alone == pytest.approx(n * 2e-6 + 8 * 8e-6)
    assert raced >= n * (2e-6 + 1e-6) + 8 * 1e-6 - 1e-12  # the race's loser is charged its prompt


def test_a_failure_is_a_row_with_its_reason():
    """Under server only the device steps in, as it does in a program."""
    table = answered(Timed("server", 1.0, fails=lambda k: k == 2), Timed("device", 0.25), dc.plan_device_only())
    assert table.loc[4, "failure"] == "server: 429: too many requests"
    assert table.loc[4, "winner"] == "device"
    assert (table["failure"].drop(4) == "").all()


def test_many_failures_of_both_end_it():
    def broken(name):
        return Timed(name, 0.1, fails=lambda k: True)

    table = answered(broken("server"), broken("device"), dc.plan_device_only(), n=50)
    assert table["ttft_s"].isna().all()
    assert len(table) == FAILURES
    assert table["failure"].str.contains("429").all()


def test_an_interrupt_keeps_whole_prompts():
    progress = Progress(quiet=True)
    server = Timed("server", 1.0, fails=lambda k: k == 2 and progress.interrupt())
    table = answered(server, Timed("device", 0.25), dc.plan_device_only(), n=50, progress=progress)
    assert table["request"].tolist() == [0, 0, 1, 1, 2, 2]


def test_answers_come_from_the_loop_of_a_program(tmp_path):
    requests = Requests(np.arange(10.0), np.full(10, 9), np.full(10, np.nan), np.full(10, 0.1), 0, "csv", None, ())
    pair = Pair(requests, 40.0, dc.DeviceProfile(60.0, 20.0, 0.1))
    plan = dc.plan_device_only()
    table = live(pair, plan, None, 3, Timed("server", 0.02), Timed("device", 0.01), max_tokens=3)
    assert len(table) == 6
    assert table["cost"].isna().all()
    priced = live(replace(pair, prices=Prices(1, 1)), plan, None, 1, Timed("s", 0.02), Timed("d", 0.01), max_tokens=3)
    assert (priced["cost"] >= 0).all()
    assert pair.with_live(table).store(tmp_path)
