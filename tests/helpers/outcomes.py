"""Tables of which answers were right with which pair (p, m), made up, and a latency model that goes with them."""

import numpy as np
import pandas as pd

import disco_core as dc
from artifact.elastic.labels import PROMPT_FEATURES, Outcomes
from disco_core.systems.elastic import LatencyModel, Pair

LEVELS = {m: dc.DeviceProfile(1e4 / m, 1e3 / m) for m in (100, 60, 30)}
SHARES = (0.2, 0.5, 1.0)
LATENCY = LatencyModel(LEVELS, shares=SHARES)
PAIRS = [Pair(p, m) for m in LEVELS for p in SHARES]


def outcomes_of(right, tokens=None, features=None, first=0):
    """Outcomes of questions with right answers as listed, pairs in the order of `PAIRS`."""
    n = len(right)
    answers = pd.DataFrame(
        [
            {"question": f"q{first + i}", "p": pair.p, "m": pair.m, "right": int(one)}
            for i, row in enumerate(right)
            for pair, one in zip(PAIRS, row, strict=True)
        ]
    ).sample(frac=1, random_state=n)
    prompts = pd.DataFrame({"question": [f"q{first + i}" for i in range(n)], "tokens": tokens or [100] * n})
    prompts["protected"] = 0
    prompts[list(PROMPT_FEATURES)] = np.zeros((n, 4)) if features is None else features
    return Outcomes.of(answers, prompts[::-1])
