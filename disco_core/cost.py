"""What an answer costs: four prices per token, the constrained endpoint they imply, and the tokens charged."""

from dataclasses import dataclass, fields
from enum import Enum, IntEnum

import numpy as np

from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.errors import ConstraintError, InputError


class End(IntEnum):
    """The two endpoints; the value is the endpoint's row in every array of shape (endpoints, ...)."""

    SERVER = 0
    DEVICE = 1


class Constraint(Enum):
    """Which endpoint is the constrained one: the budget limits its share of prompt tokens."""

    DEVICE = "device"
    SERVER = "server"

    @property
    def end(self) -> End:
        """The constrained endpoint."""
        return End.DEVICE if self is Constraint.DEVICE else End.SERVER


@dataclass(frozen=True)
class CostModel:
    """Prices in $ per token (`c_s^p, c_s^d, c_d^p, c_d^d` in the paper), each finite and at least 0.

    >>> CostModel(0.15e-6, 0.6e-6, 1e-9, 2e-9).constraint
    <Constraint.SERVER: 'server'>
    """

    server_prefill: float
    server_decode: float
    device_prefill: float
    device_decode: float

    def __post_init__(self) -> None:
        for field in fields(self):
            price = getattr(self, field.name)
            if price is None:
                raise InputError(f"{field.name} is missing: a price in $ per token of at least 0 is needed")
            object.__setattr__(self, field.name, checks.number(price, field.name))

    @classmethod
    def from_energy(
        cls,
        server_prefill: float,
        server_decode: float,
        device_prefill_j: float,
        device_decode_j: float,
        exchange_rate: float,  # lambda
    ) -> "CostModel":
        """Server prices in $ per token, device energy in J per token, and the exchange rate in $ per J."""
        rate = checks.number(exchange_rate, "exchange_rate")
        prefill = checks.number(device_prefill_j, "device_prefill_j")
        decode = checks.number(device_decode_j, "device_decode_j")
        return cls(server_prefill, server_decode, rate * prefill, rate * decode)

    @property
    def constraint(self) -> Constraint:
        """The endpoint whose lower price exceeds the higher price of the other.

        ConstraintError if the prices overlap: they do not decide, so the caller has to choose.
        """
        server = (self.server_prefill, self.server_decode)
        device = (self.device_prefill, self.device_decode)
        if min(device) > max(server):
            return Constraint.DEVICE
        if min(server) > max(device):
            return Constraint.SERVER
        raise ConstraintError(
            f"prices do not determine the constrained endpoint: server {server}, device {device} $ per token "
            "overlap; choose Constraint.DEVICE or Constraint.SERVER yourself"
        )


@dataclass(frozen=True, eq=False)
class Ledger:
    """Tokens charged to each endpoint, also for losers and cancelled work; arrays of shape (n,)."""

    server_prefill: Ints
    server_decode: Ints
    device_prefill: Ints
    device_decode: Ints

    def cost(self, prices: CostModel) -> Floats:
        """$ per request, shape (n,)."""
        total = self.server_prefill * prices.server_prefill
        total += self.server_decode * prices.server_decode
        total += self.device_prefill * prices.device_prefill
        total += self.device_decode * prices.device_decode
        return np.asarray(total, np.float64)
