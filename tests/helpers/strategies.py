"""Made inputs shared by the property tests: small, with ties and atoms, over a grid of whole milliseconds."""

import numpy as np
from hypothesis import strategies as st

import disco_core as dc

BUDGETS = (0.02, 0.05, 0.1, 0.3, 0.6, 0.9, 1.0)

# few distinct values, so that atoms and ties are common
times_s = st.lists(st.integers(0, 40).map(lambda ms: ms / 1000), min_size=1, max_size=30)
lengths = st.lists(st.integers(1, 12), min_size=1, max_size=30)
budgets = st.sampled_from((0.0, *BUDGETS)) | st.floats(0, 1)
distributions = times_s.map(dc.TTFTDistribution)
devices = st.builds(
    dc.DeviceProfile,
    prefill_rate=st.sampled_from([500.0, 1000.0, 50.0]),
    decode_rate=st.just(20.0),
    startup=st.sampled_from([0.0, 0.002]),
)


lengths_seen = st.lists(st.integers(1, 40), min_size=1, max_size=12)
prices = st.integers(0, 6).map(lambda p: p * 1e-6)


@st.composite
def plans(draw: st.DrawFn) -> dc.DispatchPlan:
    """Any policy of disco_core, and free-form plans that no policy makes."""
    budget, seen = draw(budgets), np.array(draw(lengths))
    kind = draw(st.sampled_from(["server", "device", "stochastic", "both", "D", "S", "free"]))
    constraint = draw(st.sampled_from(dc.Constraint))
    if kind == "free":
        known = np.unique(seen)
        shape = (known.size, draw(st.integers(1, 3)))
        delay = st.integers(0, 30).map(lambda ms: ms / 1000)
        first = np.array([[draw(delay) for _ in range(shape[1])] for _ in known])
        second = np.array([[draw(delay | st.just(np.inf)) for _ in range(shape[1])] for _ in known])
        order = (first, second) if draw(st.booleans()) else (second, first)
        return dc.DispatchPlan("free", known, np.stack(order), np.full(shape, 1 / shape[1]))
    return {
        "server": dc.plan_server_only,
        "device": dc.plan_device_only,
        "stochastic": lambda: dc.plan_stochastic(budget, constraint),
        "both": lambda: dc.plan_stochastic(budget, constraint, both=True),
        "D": lambda: dc.plan_device_constrained(seen, draw(distributions), budget),
        "S": lambda: dc.plan_server_constrained(seen, budget),
    }[kind]()


@st.composite
def rules(draw: st.DrawFn) -> dc.MigrationRule:
    """A migration rule of any prices, lengths and speeds."""
    return dc.MigrationRule(
        dc.CostModel(draw(prices), draw(prices), draw(prices), draw(prices)),
        dc.LengthDistribution.of(draw(lengths_seen)),
        draw(distributions),
        dc.DeviceProfile(draw(st.sampled_from([50.0, 500.0])), 20.0),
        reading_rate=draw(st.sampled_from([4.8, 3.3, 20.0])),
        takeover_quantile=draw(st.sampled_from([0.5, 0.95])),
        finish_loser_prefill=draw(st.booleans()),
    )
