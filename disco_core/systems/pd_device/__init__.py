"""P/D-Device (arXiv 2508.09035): the cloud prefills and begins the answer, the device takes over.

`timing` holds the formulas and their simulator, `refine` the shorter prompt, `take_over` the rule of the live stream.
"""

from disco_core.systems.compression import keep, kept_tokens, protected_spans, self_information
from disco_core.systems.pd_device.take_over import TakeOver, plan_together
from disco_core.systems.pd_device.timing import (
    Answers,
    Settings,
    choose,
    cloud_only,
    device_only,
    pace,
    simulate_pd,
    throughput,
)

__all__ = [
    "Answers",
    "Settings",
    "TakeOver",
    "choose",
    "cloud_only",
    "device_only",
    "keep",
    "kept_tokens",
    "pace",
    "plan_together",
    "protected_spans",
    "self_information",
    "simulate_pd",
    "throughput",
]
