"""What live and simulated notebooks share: the two ends, what is asked of them, their prices, and the policies."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from artifact.data import model, traces
from disco_core import checks
from disco_core.cost import Constraint, CostModel
from disco_core.dispatch import (
    DispatchPlan,
    plan_device_constrained,
    plan_device_only,
    plan_server_constrained,
    plan_server_only,
    plan_stochastic,
)
from disco_core.endpoints.base import Endpoint
from disco_core.endpoints.llama_cpp import LlamaCppEndpoint
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from disco_core.endpoints.local_server import LocalServer
from disco_core.endpoints.openai import OpenAIEndpoint
from disco_core.errors import InputError
from disco_core.latency import TTFTDistribution
from disco_core.workload import LengthDistribution

CONTEXT = 1024  # tokens of prompt and answer that fit each end
ELECTRICITY = 0.15 / 3.6e6  # $ per J, at $0.15 per kWh


@contextmanager
def ends(server: str = "local", *, reuses: bool = False) -> Iterator[tuple[Endpoint, Endpoint]]:
    """The server and the device, ready to answer; whatever was started for them ends with the block.

    reuses   whether they go on from what they have read of the same prompt before
    server   "local": llama.cpp's own server, in a process of its own; "openai:<model>": a server that speaks OpenAI's
             API, its key in OPENAI_API_KEY, its address in OPENAI_BASE_URL
    InputError for another name; an EndpointError where it cannot be had.
    """
    is_server(server)
    with ExitStack() as stack:
        path = model.smollm2_path()
        device = stack.enter_context(LlamaCppEndpoint(path, n_ctx=CONTEXT, name="device", reuses=reuses))
        if server == "local":
            local = stack.enter_context(LocalServer(path, n_ctx=CONTEXT))
            yield LlamaServerEndpoint(local.url, name="server", reuses=reuses), device
        else:
            name, count = server.removeprefix("openai:"), model.count_tokens  # the API does not tell how it counts
            yield OpenAIEndpoint(name, template=model.TEMPLATE, count_tokens=count, name="server"), device


def is_server(name: str) -> str:
    """The name itself; InputError unless `ends` knows it."""
    if name != "local" and not (name.startswith("openai:") and name != "openai:"):
        raise InputError(f'server must be "local" or "openai:<model>", got {name!r:.80}')
    return name


def prompts(longest: int = 10**6) -> pd.DataFrame:
    """The artifact's own prompts of up to so many tokens, with a column `built`: as the model reads them.

    InputError if all are longer.
    """
    table = traces.table("prompts")
    table = table[table["tokens"] <= longest].reset_index(drop=True)
    if table.empty:
        raise InputError(
            f"no prompt has up to {longest} tokens; the shortest has {traces.table('prompts').tokens.min()}"
        )
    return table.assign(built=[model.build(text) for text in table["prompt"]])


def cost_model(service: traces.Service, constraint: Constraint, dearer: float = 2.0) -> CostModel:
    """The service's prices beside the median measured phone's energy, at a worth of energy that makes one end scarce.

    A scarce server: energy at the price of electricity, $0.15 per kWh. A scarce device: energy so dear that even
    the device's cheaper token costs `dearer` times the server's dearer one.
    """
    phones = traces.table("phones")
    prefill_j, decode_j = (float(phones[f"{what}_mj_per_tok"].median()) / 1000 for what in ("prefill", "decode"))
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


def output_lengths(longest: int) -> LengthDistribution:
    """Alpaca's answers, cut at `longest` tokens as ours are."""
    found = traces.lengths("alpaca", "output")
    tokens = np.minimum(found.tokens, longest)
    kept = np.unique(tokens)
    return LengthDistribution(kept, [int(found.counts[tokens == one].sum()) for one in kept])


def behind_last_hop(hop: TTFTDistribution, own_s: ArrayLike) -> TTFTDistribution:
    """F of `max(X, own)`: X from the public table, the server's own TTFT from measurements."""
    x = hop.quantile((np.arange(400) + 0.5) / 400)
    return TTFTDistribution(np.maximum.outer(x, np.asarray(own_s)).ravel())


def plans(
    lengths: ArrayLike, ttft: TTFTDistribution, budget: float
) -> dict[str, tuple[DispatchPlan, Constraint | None]]:
    """Every policy that is compared, with the constraint whose rule it moves by; None: it does not move."""
    return {
        "server only": (plan_server_only(), None),
        "device only": (plan_device_only(), None),
        "Stoch-D": (plan_stochastic(budget, Constraint.DEVICE), None),
        "DiSCo-D": (plan_device_constrained(lengths, ttft, budget), Constraint.DEVICE),
        "Stoch-S": (plan_stochastic(budget, Constraint.SERVER), None),
        "DiSCo-S": (plan_server_constrained(lengths, budget), Constraint.SERVER),
    }
