"""DiSCo live with an elastic device: the same prompts with the whole model and with levels on the device.

Three plans are compared, DiSCo-D, DiSCo-S and the device alone, each with both devices. An answer that a level
began moves to the server (DiSCo-D), or up to the whole model (the device alone); under DiSCo-S it stays, and the
whole model takes over the server's answers.

The server is llama.cpp's, in a process of its own, behind an emulated network delay that is drawn from the TTFT of a
public service. It keeps the prompts in its prefix cache, so that this delay is nearly all of its TTFT.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from artifact.analysis import scenario
from artifact.data import traces
from artifact.measure.answers import recorded, request_row
from artifact.measure.elastic_scores import Ids
from artifact.measure.network_delay import LastHop
from artifact.measure.pieces import Run, Tables
from disco_core import checks
from disco_core.checks import Floats
from disco_core.cost import Constraint
from disco_core.dispatch import DispatchPlan, plan_device_only, plan_disco, plan_server_only
from disco_core.endpoints.base import Prefix
from disco_core.endpoints.llama_cpp import LlamaCppEndpoint
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from disco_core.endpoints.local_server import LocalServer
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.live.stream import stream
from disco_core.migration import MigrationRule
from disco_core.record import Record
from disco_core.simulate import simulate
from disco_core.systems.elastic import ElasticDevice, ElasticEndpoint, Level, elastic_device, move_up_rule
from disco_core.systems.elastic.decision import WHOLE
from disco_core.workload import LengthDistribution, Workload

ALONE = "device only"
PLANS = ("DiSCo-D", "DiSCo-S", ALONE)
DEVICES = ("whole", "levels")
ANSWER_TOKENS = 24  # most tokens of an answer
SIMULATED = 8000  # requests that give P99 TTFT with the whole model, of which the deadline is a share


class Compared(NamedTuple):
    """One plan with one device, and the rule by which its answers move."""

    policy: str
    on_device: str
    plan: DispatchPlan
    device: ElasticDevice
    rule: MigrationRule | None


class LevelEndpoint(ElasticEndpoint):
    """The device with all levels in memory: `planned` says which begins an answer, the whole model takes over."""

    def __init__(self, levels: Mapping[int, Level], context: int) -> None:
        self.planned: ElasticDevice | None = None
        super().__init__(levels, self._choose_planned, name="device", n_ctx=context)

    def _choose_planned(self, prefix: Prefix) -> int:
        if self.planned is None or prefix.generated:
            return WHOLE
        return int(self.planned.level([self.count(prefix.prompt)])[0])


class Ends(NamedTuple):
    """What answers: the server, the device with its levels, and the device's whole model as a second endpoint."""

    server: LastHop
    device: LevelEndpoint
    whole: LlamaCppEndpoint


def check(settings: Any) -> None:
    """InputError unless the settings of the races are valid."""
    traces.service(settings.service)  # raises for an unknown one
    checks.fraction(settings.budget, "budget")
    checks.fraction(checks.positive(settings.deadline, "deadline"), "deadline")


def compared(
    levels: Mapping[int, DeviceProfile], lengths: Sequence[int], ttft: TTFTDistribution, settings: Any
) -> list[Compared]:
    """Every plan with both devices, for prompts of these lengths."""
    s, rows = settings, []
    whole = ElasticDevice({WHOLE: levels[WHOLE]}, [1], [WHOLE])
    outputs, service = scenario.output_lengths(ANSWER_TOKENS), traces.service(s.service)
    for policy in PLANS:
        constraint = None if policy == ALONE else Constraint.DEVICE if policy == "DiSCo-D" else Constraint.SERVER
        plan = plan_disco(constraint, lengths, ttft, s.budget) if constraint else plan_device_only()
        load = Workload.sample(SIMULATED, LengthDistribution.of(lengths), outputs, np.random.default_rng(s.seed))
        alone = simulate(load, plan, scenario.server(ttft), whole, rng=np.random.default_rng(s.seed))
        deadline_s = s.deadline * float(np.quantile(alone.ttft_s, 0.99, method="inverted_cdf"))
        elastic = elastic_device(levels, plan, lengths, deadline_s)
        for name, device in zip(DEVICES, (whole, elastic), strict=True):
            rule = None
            if constraint:
                rule = MigrationRule(scenario.cost_model(service, constraint), outputs, ttft, device)
            elif device is elastic:
                rule = move_up_rule(elastic, outputs)
            rows.append(Compared(policy, name, plan, device, rule))
    return rows


def predicted_ttft_s(one: Compared, tokens: int, server_s: float, delays_s: Floats) -> float:
    """TTFT of the simulator for a request, with the server's TTFT and the waits that it really has."""
    load = Workload(np.zeros(1), np.array([tokens]), np.array([ANSWER_TOKENS]))
    server = scenario.server(TTFTDistribution([server_s]))
    found = simulate(load, one.plan, server, one.device, ttft_s=np.array([server_s]), delays_s=delays_s[:, None])
    return float(found.ttft_s[0])


async def raced(
    run: Run, levels: Mapping[int, Level], profiles: Mapping[int, DeviceProfile], prompts: Sequence[Ids]
) -> Tables:
    """The table `races`: a row for each prompt, plan and device."""
    lengths, ttft = [len(ids) for ids in prompts], traces.service(run.settings.service).ttft
    every, context = compared(profiles, lengths, ttft, run.settings), max(lengths) + 2 * ANSWER_TOKENS
    rows, lag = list[dict[str, Any]](), asyncio.create_task(run.monitor.watch())
    async with AsyncExitStack() as stack:
        stack.callback(lag.cancel)
        local = stack.enter_context(LocalServer(levels[WHOLE].path, n_ctx=context))
        device = LevelEndpoint(levels, context)
        stack.callback(device.close)
        whole = stack.enter_context(LlamaCppEndpoint(levels[WHOLE].path, name="whole model", n_ctx=context))
        server = LlamaServerEndpoint(local.url, name="server", prefix_cache=True)
        stack.push_async_callback(server.aclose)
        for k, ids in enumerate(prompts):
            ends = Ends(LastHop(server, ttft, run.settings.seed, k), device, whole)
            rows += await run.piece(f"races of prompt {k}", partial(_races, every, ends, ids, k))
    return {"races": pd.DataFrame(rows)}


async def _races(every: Sequence[Compared], ends: Ends, ids: Ids, request: int) -> list[dict[str, Any]]:
    """One prompt under every plan with both devices, in an order that rotates with the request."""
    async with aclosing(ends.server.endpoint.generate(Prefix(ids, (), 1))) as prefilled:
        await anext(prefilled)  # so that the server keeps the prompt
    rows, held_s = [], ends.server.held_s()
    for k in range(len(every)):
        one = every[(k + request) % len(every)]
        delays_s = one.plan.draw(np.array([len(ids)]), _rng(ends, request))[:, 0]
        about = {"policy": one.policy, "device": one.on_device, "request": request, "prompt_tokens": len(ids)}
        about |= {"level": int(one.device.level([len(ids)])[0]), "held_s": held_s}
        about["predicted_s"] = predicted_ttft_s(one, len(ids), held_s, delays_s)
        rows.append(about | request_row(await _answer(one, ends, ids, request)))
    return rows


async def _answer(one: Compared, ends: Ends, ids: Ids, request: int) -> Record:
    """The record of one answer. One that may move up has its level in the place of the server."""
    ends.device.planned = one.device
    moves_up = one.policy == ALONE and one.device.level([len(ids)])[0] < WHOLE
    answer = stream(
        ids,
        plan=plan_server_only() if moves_up else one.plan,
        server=ends.device if moves_up else ends.server,
        device=ends.whole if moves_up else ends.device,
        rule=one.rule if moves_up or one.policy != ALONE else None,
        max_tokens=ANSWER_TOKENS,
        wait=False,
        rng=_rng(ends, request),
    )
    return await recorded(answer)


def _rng(ends: Ends, request: int) -> np.random.Generator:
    return np.random.default_rng([ends.server.seed, request])
