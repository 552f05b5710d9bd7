"""An example of a pair, for a first look: TTFTs drawn from a public service, and one of the paper's phones."""

import numpy as np

from artifact.data import traces
from artifact.pair.pair import Pair, Prices
from artifact.pair.readers import Requests
from disco_core.checks import count

SERVICE, DEVICE = "gpt-4o-mini", "Xiaomi 14 + Qwen1.5-0.5B"


def pair(n: int = 1000, seed: int = 0) -> Pair:
    """n requests with Alpaca's lengths, a TTFT drawn from the service's F for each, and the service's prices."""
    service, rng = traces.service(SERVICE), np.random.default_rng(seed)
    requests = Requests(
        arrival_s=np.arange(count(n, "n"), dtype=float),
        prompt_tokens=traces.lengths("alpaca").sample(n, rng),
        output_tokens=traces.lengths("alpaca", "output").sample(n, rng).astype(float),
        ttft_s=service.ttft.sample(n, rng),
        failed=0,
        form="example",
        began_s=None,
        notes=("This is an example: its requests were drawn, not recorded.",),
    )
    about = {"server": f"example: {SERVICE}, a public trace", "device": f"example: {DEVICE}", "measured": "drawn"}
    prices = Prices(1e6 * service.price_in, 1e6 * service.price_out)
    return Pair(requests, float("nan"), traces.devices()[DEVICE], prices=prices, about=about)
