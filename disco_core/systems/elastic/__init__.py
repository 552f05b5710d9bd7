"""ElastiLM (arXiv 2409.09071): one model in many sizes, and the size that answers chosen for each request.

`levels` reads the sizes that were made offline, `endpoint` serves them, `decision` chooses one for each request, and
how much of the prompt is kept. `device` is the device of several sizes in DiSCo's plans and in `simulate`.
"""

from disco_core.systems.elastic.decision import Classifier, LatencyModel, Objective, Pair
from disco_core.systems.elastic.device import (
    ElasticDevice,
    begun_tokens,
    elastic_device,
    move_up_rule,
    plan_prefill_work,
    scaled_levels,
)
from disco_core.systems.elastic.endpoint import ElasticEndpoint
from disco_core.systems.elastic.levels import Level, load_levels

__all__ = [
    "Classifier",
    "ElasticDevice",
    "ElasticEndpoint",
    "LatencyModel",
    "Level",
    "Objective",
    "Pair",
    "begun_tokens",
    "elastic_device",
    "load_levels",
    "move_up_rule",
    "plan_prefill_work",
    "scaled_levels",
]
