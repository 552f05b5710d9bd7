"""The plain transcription of the paper's algorithms, against which speed is measured, gives the same plans."""

import numpy as np

import disco_core as dc
from artifact.analysis import transcription as plain


def test_the_transcription_gives_the_same_plans():
    """Its waits are among the plan's two for each length, its threshold is where the plan starts the server."""
    rng = np.random.default_rng(0)
    samples, lengths = rng.lognormal(-0.5, 0.8, 500), rng.lognormal(3.2, 0.6, 250).astype(np.int64) + 8
    ttft, f = dc.TTFTDistribution(samples), plain.make_f(samples.tolist())
    for k, b in enumerate((0.02, 0.1, 0.3, 0.6, 0.9)):
        seen = lengths[50 * k : 50 * (k + 1)]
        plan = dc.plan_device_constrained(seen, ttft, b)
        waits = plain.device_constrained(seen.tolist(), f, b)
        for length, pair in zip(plan.prompt_tokens, plan.delays_s[dc.End.DEVICE], strict=True):
            assert waits[length] in pair
        server_delay, _ = dc.plan_server_constrained(seen, b).draw(seen)
        assert np.array_equal(np.isinf(server_delay), seen <= plain.server_constrained(seen.tolist(), b))
