"""The setting of the live and the simulated notebooks: endpoint profiles, prices, answer lengths, policies."""

from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from artifact.data import traces
from disco_core import checks
from disco_core.cost import Constraint, CostModel
from disco_core.dispatch import (
    DispatchPlan,
    plan_device_only,
    plan_disco,
    plan_server_only,
    plan_stochastic,
)
from disco_core.errors import InputError
from disco_core.latency import DeviceProfile, ServerProfile, TTFTDistribution
from disco_core.workload import LengthDistribution

ELECTRICITY = 0.15 / 3.6e6  # $ per J, at $0.15 per kWh


def server(ttft: TTFTDistribution) -> ServerProfile:
    """A simulated server with this TTFT distribution."""
    return ServerProfile(ttft, traces.SERVER_RATE)


def device_profile(trials: pd.DataFrame) -> DeviceProfile:
    """The measured device: a line fitted to all first-token times, and the median gap between tokens as its pace.

    trials   one row for each token: prompt_tokens, repeat, token (from 0 in each trial), generated_s
    InputError for trials of a single length, or of one token each.
    """
    first = trials[trials["token"] == 0]
    gap_s = trials.groupby(["prompt_tokens", "repeat"])["generated_s"].diff().median()
    if not gap_s > 0:
        raise InputError("trials need several tokens each, generated one after the other, to tell a decode rate")
    return DeviceProfile.fit(first["prompt_tokens"], first["generated_s"], 1 / gap_s)


def cost_model(service: traces.Service, constraint: Constraint, dearer: float = 2.0) -> CostModel:
    """The service's prices and the energy of the median measured phone, at a price of energy that gives `constraint`.

    SERVER: energy at the price of electricity, $0.15 per kWh. DEVICE: energy so expensive that even the device's
    cheaper token costs `dearer` times the server's more expensive one.
    """
    prefill_j, decode_j = _phone_energy()
    rate = ELECTRICITY
    if constraint is Constraint.DEVICE:
        times = checks.number(dearer, "dearer", 1.0, above=True)
        rate = times * max(service.price_in, service.price_out) / min(prefill_j, decode_j)
    found = CostModel.from_energy(service.price_in, service.price_out, prefill_j, decode_j, rate)
    if found.constraint is not constraint:
        raise InputError(
            f"the prices of {service.name} make the {found.constraint.value} scarce whatever energy costs"
        )
    return found


@cache
def _phone_energy() -> tuple[float, float]:
    # J per token of the median phone, in prefill and in decode
    phones = traces.table("phones")
    prefill_j, decode_j = (float(phones[f"{what}_mj_per_tok"].median()) / 1000 for what in ("prefill", "decode"))
    return prefill_j, decode_j


def output_lengths(longest: int) -> LengthDistribution:
    """Lengths of Alpaca's answers, cut at `longest` tokens as the measured answers are."""
    found = traces.lengths("alpaca", "output")
    tokens = np.minimum(found.tokens, longest)
    kept = np.unique(tokens)
    return LengthDistribution(kept, [int(found.counts[tokens == one].sum()) for one in kept])


def with_network_delay(network_ttft: TTFTDistribution, local_s: ArrayLike) -> TTFTDistribution:
    """F with an emulated network delay: `max(X, local_s)`, X from a public trace, local_s of the local server."""
    x = network_ttft.quantile((np.arange(400) + 0.5) / 400)
    return TTFTDistribution(np.maximum.outer(x, np.asarray(local_s)).ravel())


def plans(
    lengths: ArrayLike, ttft: TTFTDistribution, budget: float
) -> dict[str, tuple[DispatchPlan, Constraint | None]]:
    """Every policy that is compared, with the constraint whose migration rule it uses; None: it never migrates."""
    return {
        "server only": (plan_server_only(), None),
        "device only": (plan_device_only(), None),
        "Stoch-D": (plan_stochastic(budget, Constraint.DEVICE), None),
        "DiSCo-D": (plan_disco(Constraint.DEVICE, lengths, ttft, budget), Constraint.DEVICE),
        "Stoch-S": (plan_stochastic(budget, Constraint.SERVER), None),
        "DiSCo-S": (plan_disco(Constraint.SERVER, lengths, ttft, budget), Constraint.SERVER),
    }
