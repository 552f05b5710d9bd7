"""Two replayed endpoints for a live stream, and what its reader gets."""

import asyncio

from hypothesis import strategies as st

import disco_core as dc
from tests.helpers.replay import Failure, ReplayEndpoint

MS = st.integers(1, 40).map(lambda ms: ms / 1000)
DEVICE = dc.DeviceProfile(500.0, 25.0)
SERVER_RATE = 50.0


def ends(server_ttft, length, **server):
    server = ReplayEndpoint(server_ttft, [1 / SERVER_RATE], length, name="server", **server)
    return server, ReplayEndpoint(lambda n: float(DEVICE.ttft(n)), [1 / DEVICE.decode_rate], length, name="device")


async def collect(running):
    tokens, error = [], None
    try:
        async for token in running:
            tokens.append(token)
    except dc.StreamError as failure:
        error = failure
    return tokens, error


failures = st.none() | st.sampled_from(Failure)


class Hung(ReplayEndpoint):
    """An endpoint that takes `cancel_s` to confirm that it stopped, whatever else fails."""

    async def tokens(self, prefix):
        try:
            async for token in super().tokens(prefix):
                yield token
        finally:
            await asyncio.sleep(self.cancel_s)


async def until_the_end(live):
    """What `collect` says, and the loop's time when all was over."""
    return *await collect(live), asyncio.get_running_loop().time()
