"""The pace under the real clock: many streams at once, each token released when it is due."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

import disco_core as dc
from tests.helpers.replay import ReplayEndpoint

STREAMS = 500
BOTH = dc.plan_stochastic(1.0, dc.Constraint.DEVICE, both=True)
RULE = dc.MigrationRule(
    dc.CostModel(0, 1e-7, 1e-6, 1e-6),
    dc.LengthDistribution([200], [1]),
    dc.TTFTDistribution([0.3]),
    dc.DeviceProfile(500.0, 25.0),
)


async def reader(number):
    """One of them: it starts within a second, races two endpoints, migrates to the server, reads 8 to 10 tokens."""
    length = 8 + number % 3
    server = ReplayEndpoint(0.20 + number % 7 / 100, [0.02], length, name="server")
    device = ReplayEndpoint(0.15 + number % 5 / 100, [0.04], length, name="device")
    rng = np.random.default_rng(number)
    await asyncio.sleep(number / STREAMS)
    live = dc.stream([0] * 20, plan=BOTH, server=server, device=device, rule=RULE, max_tokens=length, rng=rng)
    assert [token.id async for token in live] == list(range(length))
    assert (server.running, device.running) == (0, 0)
    return live.record


async def readers():
    return await asyncio.gather(*map(reader, range(STREAMS)))


def waited_s():
    """Seconds this thread has waited for a core so far, ready to run; 0 where the system does not tell."""
    told = Path("/proc/thread-self/schedstat")
    return int(told.read_text().split()[1]) / 1e9 if told.exists() else 0.0


@pytest.mark.slow
def test_500_streams_in_one_thread_hold_the_pace():
    """P99 of how late a token came, at 4.8 tokens/s each: the best of at most five runs on an idle core.

    A loop that cannot keep up is late in every run. Where none was in time, and others kept this thread from its
    core for over 2 % of each of them, nothing is known, and the test is skipped.
    """
    found = []
    while len(found) < 5 and min(found, default=(1.0, 0.0))[0] >= 0.020:
        before, began = waited_s(), time.perf_counter()
        records = asyncio.run(readers())
        waited = (waited_s() - before) / (time.perf_counter() - began)
        assert any(record.migrated_at for record in records)
        late_s = np.concatenate([record.late_s for record in records])
        assert late_s.size == sum(len(record.tokens) for record in records)
        found.append((float(np.quantile(late_s, 0.99)), waited))
    said = ", ".join(f"{1000 * p99:.1f} ms with {waited:.1%} of the time waiting for a core" for p99, waited in found)
    print("P99 of late_s:", said)
    if min(found)[0] >= 0.020 and min(waited for _, waited in found) > 0.02:
        pytest.skip(f"others use the machine: P99 of late_s was {said}")
    assert min(found)[0] < 0.020, said
