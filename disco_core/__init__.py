"""DiSCo: one streamed answer from two endpoints, a model on the device and one on a server.

A plan says when each endpoint starts, a rule says when generation moves to the other; the same plan and rule drive
every figure and every live `stream`. Start with `TTFTDistribution` and `DeviceProfile` for the speed of the
endpoints, make a `DispatchPlan` with one of the `plan_*` functions, and `simulate` it over a `Workload`.
"""

import typing

from disco_core.cost import Constraint, CostModel, End, Ledger
from disco_core.delivery import (
    deadlines,
    delayed,
    quality_of_experience,
    release,
    time_between_tokens,
)
from disco_core.dispatch import (
    DispatchPlan,
    plan_device_constrained,
    plan_device_only,
    plan_disco,
    plan_server_constrained,
    plan_server_only,
    plan_stochastic,
)
from disco_core.errors import (
    ConstraintError,
    CutError,
    DiscoError,
    EndpointError,
    FilteredError,
    InputError,
    ProtocolError,
    RefusedError,
    StalledError,
    StreamError,
)
from disco_core.latency import DeviceProfile, ServerProfile, TTFTDistribution
from disco_core.live.stream import Run, stream
from disco_core.migration import HAND_OVER, PREFILL, RECALL, STAY, MigrationRule, Rule, StreamState
from disco_core.queueing import QueueResult, simulate_queue
from disco_core.record import HandOver, Record, StreamedToken
from disco_core.simulate import Result, simulate
from disco_core.workload import LengthDistribution, Workload

if typing.TYPE_CHECKING:
    from disco_core.beyond.optimal import plan_optimal

__all__ = [
    "HAND_OVER",
    "PREFILL",
    "RECALL",
    "STAY",
    "Constraint",
    "ConstraintError",
    "CostModel",
    "CutError",
    "DeviceProfile",
    "DiscoError",
    "DispatchPlan",
    "End",
    "EndpointError",
    "FilteredError",
    "HandOver",
    "InputError",
    "Ledger",
    "LengthDistribution",
    "MigrationRule",
    "ProtocolError",
    "QueueResult",
    "Record",
    "RefusedError",
    "Result",
    "Rule",
    "Run",
    "ServerProfile",
    "StalledError",
    "StreamError",
    "StreamState",
    "StreamedToken",
    "TTFTDistribution",
    "Workload",
    "deadlines",
    "delayed",
    "plan_device_constrained",
    "plan_device_only",
    "plan_disco",
    "plan_optimal",
    "plan_server_constrained",
    "plan_server_only",
    "plan_stochastic",
    "quality_of_experience",
    "release",
    "simulate",
    "simulate_queue",
    "stream",
    "time_between_tokens",
]


def __getattr__(name: str) -> typing.Any:
    """What is beyond the paper is imported at its first use."""
    if name != "plan_optimal":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from disco_core.beyond.optimal import plan_optimal

    globals()[name] = plan_optimal
    return plan_optimal
