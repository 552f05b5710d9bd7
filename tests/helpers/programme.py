"""The best dispatch plan as a linear programme over (length, choice): an independent reference for small cases."""

from collections import Counter

import numpy as np
from scipy.optimize import linprog

import disco_core as dc


class Programme:
    """All plans for these lengths: chance[l, k] that a prompt of length l takes wait k of the constrained endpoint.

    samples maps each length to its server TTFTs, equally likely.
    """

    def __init__(self, seen, samples, device, constraint, q):
        count = Counter(seen)
        self.lengths = sorted(count)
        self.p = np.array([count[l] for l in self.lengths]) / len(seen)
        self.load = np.array(self.lengths) / np.mean(seen)
        self.q, self.constraint = q, constraint
        everything = sorted({0.0, np.inf, *(s for l in self.lengths for s in samples[l])})
        self.waits = np.array(everything if constraint is dc.Constraint.DEVICE else [0.0, np.inf])
        # what becomes of every (length, wait, sample), straight from the definition of the race
        self.outcome, self.started = [], []
        for l in self.lengths:
            server, device_s = np.array(samples[l])[None, :], float(device.ttft(l))
            if constraint is dc.Constraint.DEVICE:
                self.outcome.append(np.minimum(server, self.waits[:, None] + device_s))
                self.started.append((self.waits[:, None] < server).mean(axis=1))
            else:
                self.outcome.append(np.minimum(server + self.waits[:, None], device_s))
                self.started.append((self.waits < device_s).astype(float))

    def deadlines(self):
        """Every time at which some request may have its first token, ascending."""
        times = np.unique(np.concatenate([o.ravel() for o in self.outcome]))
        return times[np.isfinite(times)]

    def least_mean(self, budget, deadline_s, slack=0.0):
        """The least mean TTFT in seconds; None if no plan keeps to both limits."""
        mean = np.concatenate([p * o.mean(axis=1) for p, o in zip(self.p, self.outcome, strict=True)])
        use = np.concatenate([p * l * s for p, l, s in zip(self.p, self.load, self.started, strict=True)])
        late = np.concatenate([p * (o > deadline_s).mean(axis=1) for p, o in zip(self.p, self.outcome, strict=True)])
        n, k = len(self.lengths), self.waits.size
        found = linprog(
            mean,
            A_ub=[use, late],
            b_ub=[budget + slack, 1 - self.q + slack],
            A_eq=np.kron(np.eye(n), np.ones(k)),
            b_eq=np.ones(n),
            method="highs",
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        return found.fun if found.status == 0 else None

    def least_deadline(self, budget, mean_s, slack=0.0):
        """The least t with `P(TTFT > t) <= 1 - q` for a plan of at most this mean."""
        times = self.deadlines()
        low, high = 0, times.size - 1
        while low < high:
            middle = (low + high) // 2
            mean = self.least_mean(budget, times[middle], slack)
            low, high = (low, middle) if mean is not None and mean <= mean_s + slack else (middle + 1, high)
        return times[low]

    def measure(self, plan, samples, device):
        """Of a plan, by enumeration: mean TTFT, its quantile at q, and the share of the constrained endpoint."""
        mean, share, times, mass = 0.0, 0.0, [], []
        for l, p, load in zip(self.lengths, self.p, self.load, strict=True):
            row = int(np.searchsorted(plan.prompt_tokens, min(l, plan.prompt_tokens[-1])))
            for chance, server_wait, device_wait in zip(plan.probability[row], *plan.delays_s[:, row], strict=True):
                if chance == 0:
                    continue
                server, device_s = server_wait + np.array(samples[l]), device_wait + float(device.ttft(l))
                first = np.minimum(server, device_s)
                started = (device_wait < server, np.full(server.shape, server_wait < device_s))
                mean += p * chance * first.mean()
                share += p * load * chance * started[self.constraint is dc.Constraint.SERVER].mean()
                times.extend(first)
                mass.extend(np.full(first.size, p * chance / first.size))
        order = np.argsort(times)
        reached = np.cumsum(np.array(mass)[order])
        quantile = np.array(times)[order][np.searchsorted(reached, self.q - 1e-9)]
        return mean, quantile, share
