"""P/D-Device beside the cloud alone, the device alone and DiSCo: cells of a simulated grid, on the same requests.

A cell is a service, a device, a prompt length and an answer length; every system gets the same draws of the cloud's
TTFT. DiSCo is at b = 1 here, so both endpoints are started at once, as P/D-Device does.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from artifact.analysis import scenario
from artifact.data import traces
from disco_core.checks import Floats
from disco_core.cost import Constraint, CostModel
from disco_core.dispatch import plan_disco
from disco_core.latency import DeviceProfile, ServerProfile, TTFTDistribution
from disco_core.migration import MigrationRule
from disco_core.simulate import simulate
from disco_core.systems import pd_device
from disco_core.workload import LengthDistribution, Workload

SYSTEMS = ("cloud only", "device only", "DiSCo", "P/D-Device")
REFINED = "P/D-Device, refined"
FAST = "Xiaomi 15 Pro + Llama-3.2-1B"
LENGTHS = 2 ** np.arange(6, 14)  # prompt tokens, 64 to 8192


@dataclass(frozen=True, eq=False)
class Cells:
    """What is the same for every cell.

    tpot_limit_s   s, the most seconds between tokens that the reader accepts
    token_s        t_c, seconds between tokens of the cloud
    rho, loss      shares of a prompt that may be prefilled, and the share of its self-information each leaves out
    """

    services: Mapping[str, traces.Service]
    devices: Mapping[str, DeviceProfile]
    requests: int
    output_tokens: int
    tpot_limit_s: float
    token_s: float
    seed: int
    rho: Floats
    loss: Floats
    loss_limit: float

    def draws(self, ttft: TTFTDistribution, l: int, n: int) -> tuple[Workload, Floats]:
        """Requests of l tokens whose answers have n, and the cloud's TTFT for each."""
        load = Workload(np.zeros(self.requests), np.full(self.requests, l), np.full(self.requests, n))
        return load, ttft.sample(self.requests, np.random.default_rng([self.seed, 1]))

    def answers(
        self, ttft: TTFTDistribution, device: DeviceProfile, l: int, n: int, prices: CostModel
    ) -> dict[str, pd_device.Answers]:
        """The answers of every system that prefills the complete prompt, on the same requests."""
        load, first_s = self.draws(ttft, l, n)
        chosen = pd_device.choose(first_s, self.token_s, device, load.prompt_tokens, n, self.tpot_limit_s)
        return {
            "cloud only": pd_device.cloud_only(load, first_s, self.token_s),
            "device only": pd_device.device_only(load, device),
            "DiSCo": self._disco(load, first_s, ttft, device, prices),
            "P/D-Device": pd_device.simulate_pd(load, chosen, first_s, self.token_s, device),
        }

    def _disco(
        self, load: Workload, first_s: Floats, ttft: TTFTDistribution, device: DeviceProfile, prices: CostModel
    ) -> pd_device.Answers:
        n = int(load.output_tokens[0])
        rule = MigrationRule(prices, LengthDistribution([n], [1]), ttft, device, 1 / self.tpot_limit_s)
        plan = plan_disco(Constraint.SERVER, LENGTHS, ttft, 1.0)  # both endpoints at once
        server, rng = ServerProfile(ttft, 1 / self.token_s), np.random.default_rng(0)
        both_s = np.stack([first_s, device.ttft(load.prompt_tokens)])
        result = simulate(load, plan, server, device, rule=rule, rng=rng, ttft_s=both_s)
        ledger = result.ledger
        cloud_s = result.server_started * (result.ttft_s + np.maximum(ledger.server_decode - 1, 0) * self.token_s)
        return pd_device.Answers(
            ttft_s=result.ttft_s,
            tpot_max_s=np.asarray(result.tbt_p99_s),  # released at 1 / s, so its largest gap is its P99
            finish_s=np.full(load.prompt_tokens.size, np.nan),
            cloud_s=cloud_s,
            cloud_tokens=ledger.server_decode,
            device_tokens=ledger.device_decode,
            taken_over=np.asarray(result.migrated_at) > 0,
            ledger=ledger,
        )

    def times(self, service: str, device: str, l: int) -> Iterator[dict[str, Any]]:
        """A row for each system: TTFT, largest gap, cloud seconds, and the answers a cloud slot carries."""
        prices = scenario.cost_model(self.services[service], Constraint.SERVER)
        ttft, profile = self.services[service].ttft, self.devices[device]
        by_system = self.answers(ttft, profile, l, self.output_tokens, prices)
        alone_s = by_system["cloud only"].cloud_s
        for system, one in by_system.items():
            took = one.taken_over
            yield {
                "service": service,
                "device": device,
                "prompt_tokens": l,
                "system": system,
                "ttft_s": np.median(one.ttft_s),
                "taken_over": took.mean(),
                "tpot_max_s": np.median(one.tpot_max_s),
                "cloud_s": one.cloud_s.mean(),
                "answers_first": (one.cloud_tokens == 0).mean(),
                "times": pd_device.throughput(one.cloud_s) / pd_device.throughput(alone_s),
                "times_taken_over": alone_s[took].mean() / one.cloud_s[took].mean() if took.any() else np.nan,
            }

    def refined_s(self, service: str, device: str, l: int) -> dict[str, Any]:
        """Mean cloud seconds of an answer where the prompt may be refined to one of the shares rho."""
        load, first_s = self.draws(self.services[service].ttft, l, self.output_tokens)
        profile, limit = self.devices[device], self.tpot_limit_s
        given = first_s, self.token_s, profile, load.prompt_tokens, self.output_tokens, limit
        chosen = pd_device.choose(*given, self.rho, self.loss, self.loss_limit)
        answers = pd_device.simulate_pd(load, chosen, first_s, self.token_s, profile)
        row = {"service": service, "device": device, "prompt_tokens": l, "system": REFINED}
        return row | {"cloud_s": answers.cloud_s.mean()}

    def cheapest(self, l: int, n: int, ratio: float) -> dict[str, Any]:
        """The cheapest system with a median TTFT of at most 1 s and a largest gap of at most s; "none" if none has.

        ratio   price of a device's token over that of the cloud's, gpt-4o-mini's
        """
        service = self.services["gpt-4o-mini"]
        prices = CostModel(service.price_in, service.price_out, ratio * service.price_in, ratio * service.price_out)
        costs = {
            name: one.ledger.cost(prices).mean()
            for name, one in self.answers(service.ttft, self.devices[FAST], l, n, prices).items()
            if np.median(one.ttft_s) <= 1 and np.median(one.tpot_max_s) <= self.tpot_limit_s + 1e-9
        }
        best = min(costs, key=lambda name: float(costs[name]), default="none")
        return {"prompt_tokens": l, "output_tokens": n, "price_ratio": ratio, "best": best}


def devices() -> dict[str, DeviceProfile]:
    """The DiSCo paper's phones, and a measured one that prefills 545 tokens per second (prompts of 256 tokens)."""
    phones = traces.table("phones")
    one = phones.query("device == 'xiaomi15pro' and model == 'llama3_2-1b' and prefill_tokens == 256")
    row = one[one.engine == "ours"].iloc[0]  # its publishers' engine
    return traces.devices() | {FAST: DeviceProfile(float(row.prefill_tok_per_s), float(row.decode_tok_per_s))}
