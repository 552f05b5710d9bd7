"""Plan and simulate with what the wheel installs; prints the packages that this loaded."""

import sys

import numpy as np

import disco_core as dc

rng = np.random.default_rng(0)
lengths = rng.integers(10, 200, 1000)
server = dc.ServerProfile(dc.TTFTDistribution([0.3, 0.5, 2.5]), decode_rate=50.0)
device = dc.DeviceProfile(prefill_rate=79.9, decode_rate=21.47)
load = dc.Workload(np.arange(1000.0), lengths, np.full(1000, 80))
plan = dc.plan_device_constrained(lengths, server.ttft, budget=0.3)
assert abs(dc.simulate(load, plan, server, device, rng=rng).budget_used - 0.3) < 0.05
print(*sorted({name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)))
