"""Live answers of a pair: the same prompts under the recommended plan and under server only, interleaved.

Each prompt is answered under both within seconds, in alternating order, so that neither has the better hours of the
server or more often its prefix cache. They go through `disco_core.stream`, as in a program.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from artifact.measure.answers import recorded
from artifact.pair import prompts as texts
from artifact.pair.pair import LIVE, Pair
from artifact.pair.progress import Progress
from artifact.pair.prompts import Messages
from artifact.pair.server import DEADLINE_S
from disco_core import checks
from disco_core.cost import CostModel, End
from disco_core.dispatch import DispatchPlan, plan_server_only
from disco_core.endpoints.base import Endpoint
from disco_core.live.stream import stream
from disco_core.migration import Rule
from disco_core.record import Record

SERVER_ONLY, RECOMMENDED = POLICIES = ("server only", "recommended")
FAILURES = 10  # answers in a row without a token, after which it ends


def live(
    pair: Pair,
    plan: DispatchPlan,
    rule: Rule | None,
    n: int,
    server: Endpoint,
    device: Endpoint,
    *,
    prompts: Sequence[Messages] | None = None,
    max_tokens: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """n prompts under both policies: a table with columns `LIVE`, two rows for each prompt.

    pair      whose prices and device give the cost in $ per answer, NaN without prices
    prompts   by default the project's, in random order
    A failure is a row with its reason; TTFT is NaN where no token came. After an interrupt, or `FAILURES` answers in
    a row without a token, the table has the prompts that were answered under both.
    """
    from artifact.pair.measure import run

    checks.count(n, "n")
    if prompts is None:
        ours = texts.load(None)
        prompts = [ours[int(k)] for k in np.random.default_rng(seed).permutation(len(ours))]
    session = _Session(
        {SERVER_ONLY: (plan_server_only(), None), RECOMMENDED: (plan, rule)},
        (server, device),
        None if pair.prices is None else pair.prices.model(pair.device),
        checks.count(max_tokens, "max_tokens"),
        seed,
    )
    asked = [prompts[k % len(prompts)] for k in range(n)]
    return run(session.rows(asked, Progress(quiet=True) if progress is None else progress))


class _Session:
    def __init__(
        self,
        policies: dict[str, tuple[DispatchPlan, Rule | None]],
        endpoints: tuple[Endpoint, Endpoint],
        cost: CostModel | None,
        max_tokens: int,
        seed: int,
    ) -> None:
        self.policies, self.cost, self.max_tokens, self.seed = policies, cost, max_tokens, seed
        self.server, self.device = endpoints

    async def rows(self, prompts: Sequence[Messages], progress: Progress) -> pd.DataFrame:
        rows, failed = list[dict[str, Any]](), 0
        progress.start(len(prompts), "live", "prompt")
        try:
            for request, prompt in enumerate(prompts):
                if progress.interrupted or failed >= FAILURES:
                    break
                order = POLICIES if request % 2 == 0 else POLICIES[::-1]
                both = [await self._row(request, policy, prompt) for policy in order]
                rows += sorted(both, key=lambda row: POLICIES.index(row["policy"]))
                for row in both:
                    failed = failed + 1 if np.isnan(row["ttft_s"]) else 0
                progress.update()
        finally:
            progress.stop()
            if hasattr(self.server, "aclose"):
                await self.server.aclose()
        return pd.DataFrame(rows, columns=LIVE)

    async def _row(self, request: int, policy: str, prompt: Messages) -> dict[str, Any]:
        plan, rule = self.policies[policy]
        run = stream(
            prompt,
            plan=plan,
            server=self.server,
            device=self.device,
            rule=rule,
            max_tokens=self.max_tokens,
            rng=np.random.default_rng([self.seed, request]),
            wait=False,
            stall_s=DEADLINE_S,
        )
        record = await recorded(run)
        return {
            "request": request,
            "policy": policy,
            "prompt_tokens": int(self.device.count(prompt)),
            "ttft_s": np.nan if record.ttft_s is None else record.ttft_s,
            "tokens": len(record.tokens),
            "winner": "" if record.winner is None else record.winner.name.lower(),
            "migrated_at": record.migrated_at,
            "cost": np.nan if self.cost is None else _cost(record, self.cost),
            "failure": "; ".join(map(str, record.failures)),
        }


def _cost(record: Record, cost: CostModel) -> float:
    """$ of what both endpoints were charged with, losers and cancelled work included."""
    server, device = End.SERVER, End.DEVICE
    return float(
        record.prefill[server] * cost.server_prefill
        + record.decode[server] * cost.server_decode
        + record.prefill[device] * cost.device_prefill
        + record.decode[device] * cost.device_decode
    )
