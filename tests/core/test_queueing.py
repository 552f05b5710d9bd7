"""One device for all: the queue against a clock that goes from event to event, and against the closed form."""

import heapq
import math
from collections import deque

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import disco_core as dc
from disco_core.queueing import alone_s
from tests.helpers.strategies import devices, distributions, plans


def event_by_event(requests):
    """The rules one event at a time: requests are dicts of whole seconds, and get what became of them.

    Of one moment, tokens come first, the server's before the device's; then ends are asked; then the device, if it is
    free, takes the next in its queue whom nobody has answered.
    """
    events = []
    for i, one in enumerate(requests):
        one |= {"by": None, "server": False, "began": None, "left": None, "was_asked": False}
        for kind, delay in (("ask server", one["server_delay"]), ("ask device", one["device_delay"])):
            if math.isfinite(delay):
                heapq.heappush(events, (one["came"] + delay, 2 + (kind == "ask device"), one["came"], i, kind))
    queue, at_work = deque(), None
    while events:
        now = events[0][0]
        while events and events[0][0] == now:
            *_, i, kind = heapq.heappop(events)
            one = requests[i]
            if kind == "ask server" and one["by"] is None:
                one["server"] = True
                heapq.heappush(events, (now + one["server_ttft"], 0, 0, i, "server token"))
            elif kind == "ask device" and one["by"] is None:
                one["was_asked"] = True
                queue.append(i)
            elif kind == "server token" and one["by"] is None:
                one |= {"by": "server", "first": now - one["came"]}
                if at_work == i:
                    at_work, one["left"] = None, now
            elif kind == "device token" and one["by"] is None:
                one |= {"by": "device", "first": now - one["came"]}
                heapq.heappush(events, (now + one["decoding"], 1, 0, i, "done"))
            elif kind == "done":
                at_work, one["left"] = None, now
        while at_work is None and queue:
            if requests[i := queue.popleft()]["by"] is None:
                at_work, requests[i]["began"] = i, now
                heapq.heappush(events, (now + requests[i]["device_ttft"], 1, 0, i, "device token"))


@st.composite
def workloads(draw):
    """Few whole seconds, so that requests meet in the queue and moments coincide, exactly."""
    few, some = st.integers(0, 4), st.integers(1, 6)
    found = []
    for _ in range(draw(st.integers(1, 10))):
        server_delay = draw(st.sampled_from([0, 0, 0, 2, math.inf]))
        never = [] if math.isinf(server_delay) else [math.inf]
        times = {"server_ttft": draw(st.integers(0, 8)), "device_ttft": draw(some), "decoding": draw(few)}
        delays = {"server_delay": server_delay, "device_delay": draw(st.sampled_from([0, 0, 1, 2, 5, *never]))}
        found.append({"came": draw(st.integers(0, 12)), **times, **delays})
    return found


# a server that would answer at the very moment it is asked, which is the moment of the device's first token
AT_ONCE = {"server_delay": 2, "server_ttft": 0, "device_delay": 0, "device_ttft": 2, "decoding": 3}


@given(workloads())
@example([{"came": 1} | AT_ONCE])
def test_the_queue_is_the_event_by_event_reference(requests):
    def column(name):
        return np.array([one[name] for one in requests], float)

    prompt = np.arange(1, len(requests) + 1)
    load = dc.Workload(column("came"), prompt, column("decoding") + 1)
    server, device = dc.ServerProfile(dc.TTFTDistribution([1.0]), 50.0), dc.DeviceProfile(1.0, 1.0)
    result = dc.simulate_queue(
        load,
        dc.plan_server_only(),
        server,
        device,
        ttft_s=np.stack([column("server_ttft"), column("device_ttft")]),
        delays_s=np.stack([column("server_delay"), column("device_delay")]),
    )
    event_by_event(requests)
    worked = 0
    for i, one in enumerate(requests):
        assert result.ttft_s[i] == one["first"]
        assert dc.End(result.winner[i]).name.lower() == one["by"]
        assert result.server_started[i] == one["server"]
        assert result.device_started[i] == (one["began"] is not None)
        assert result.dropped[i] == (one["was_asked"] and one["began"] is None)
        if one["began"] is None:
            assert result.device_start_s[i] == math.inf
            assert result.waited_s[i] == (one["first"] - one["device_delay"] if one["was_asked"] else 0)
        else:
            assert result.device_start_s[i] == one["began"] - one["came"]
            assert result.waited_s[i] == result.device_start_s[i] - one["device_delay"]
            worked += (spent := one["left"] - one["began"])
            assert result.busy_s[i] == spent
        charged = (prompt[i] * one["server"], prompt[i] * (one["began"] is not None))
        assert (result.ledger.server_prefill[i], result.ledger.device_prefill[i]) == charged
    assert result.busy_s.sum() == worked


@st.composite
def loads(draw, apart=False):
    n = draw(st.integers(1, 40))
    tokens = st.lists(st.integers(1, 12), min_size=n, max_size=n)
    gaps = st.just(1000.0) if apart else st.floats(0, 0.5)
    arrival_s = np.cumsum([draw(gaps) for _ in range(n)])
    return dc.Workload(arrival_s[draw(st.permutations(range(n)))], draw(tokens), draw(tokens))


@given(loads(apart=True), plans(), distributions, devices, st.integers(0, 2**32 - 1))
def test_without_a_queue_it_is_the_race_of_simulate(load, plan, ttft, device, seed):
    ends = dc.ServerProfile(ttft, 50.0), device
    queued, alone = (f(load, plan, *ends, rng=np.random.default_rng(seed)) for f in (dc.simulate_queue, dc.simulate))
    for name in ("ttft_s", "winner", "server_started", "device_started"):
        assert np.array_equal(getattr(queued, name), getattr(alone, name))
    assert not queued.waited_s.any()
    assert not queued.dropped.any()
    assert queued.budget_used == alone.budget_used or plan.constraint is None


@given(loads(), plans(), distributions, devices, st.integers(0, 2**32 - 1))
def test_the_device_serves_one_at_a_time_and_what_is_dropped_is_free(load, plan, ttft, device, seed):
    ends = dc.ServerProfile(ttft, 50.0), device
    queued, alone = (f(load, plan, *ends, rng=np.random.default_rng(seed)) for f in (dc.simulate_queue, dc.simulate))
    began = queued.device_started
    start, busy = (load.arrival_s + queued.device_start_s)[began], queued.busy_s[began]
    order = np.argsort(start + busy / 2)  # of two that start together, first the one that is done at once
    assert np.all(start[order][1:] >= (start + busy)[order][:-1] - 1e-9)
    assert not (queued.dropped & began).any()
    assert not queued.ledger.device_prefill[~began].any()
    assert not queued.busy_s[~began].any()
    # a queue can only delay the device: nothing comes sooner, the server is asked no less and the device no more
    assert np.all(queued.ttft_s >= alone.ttft_s)
    assert np.all(queued.server_started >= alone.server_started)
    assert np.all(began <= alone.device_started)
    assert np.array_equal(began | queued.dropped, alone.device_started)
    assert np.all(queued.waited_s >= 0)
    alone_work = alone_s(load, device)
    assert np.all(queued.busy_s <= alone_work + 1e-9)
    won = queued.winner == dc.End.DEVICE
    assert queued.busy_s[won] == pytest.approx(alone_work[won])


def test_the_mean_wait_of_poisson_arrivals_is_the_closed_form():
    """Pollaczek and Khinchin: lambda E[X^2] / (2 (1 - rho)) for one server, first come, first served."""
    rng, rho = np.random.default_rng(8), 0.6
    lengths, device = dc.LengthDistribution([5, 10, 20, 40], [4, 3, 2, 1]), dc.DeviceProfile(20.0, 10.0, 0.1)
    load = dc.Workload.sample(100_000, lengths, lengths, rng)
    work = alone_s(load, device)
    rate = rho / work.mean()
    load = dc.Workload(load.arrival_s / rate, load.prompt_tokens, load.output_tokens)
    server = dc.ServerProfile(dc.TTFTDistribution([1.0]), 50.0)
    result = dc.simulate_queue(load, dc.plan_device_only(), server, device, rng=rng)
    assert result.waited_s.mean() == pytest.approx(rate * np.mean(work**2) / (2 * (1 - rho)), rel=0.05)
    assert result.device_busy == pytest.approx(rho, rel=0.01)
    assert result.ttft_s == pytest.approx(result.waited_s + device.ttft(load.prompt_tokens))


def test_three_requests_by_hand():
    """The second waits until its server has answered, the third until the device is free."""
    load = dc.Workload([0.0, 1.0, 2.0], [10, 10, 10], [31, 31, 11])
    server, device = dc.ServerProfile(dc.TTFTDistribution([2.5]), 50.0), dc.DeviceProfile(10.0, 10.0)
    delays = [[np.inf, 0.0, np.inf], [0.0, 0.0, 0.0]]
    plan = dc.plan_device_constrained([10], server.ttft, 0.9)
    result = dc.simulate_queue(load, plan, server, device, ttft_s=[2.5] * 3, delays_s=delays)
    assert result.ttft_s.tolist() == [1.0, 2.5, 3.0]
    assert result.dropped.tolist() == [False, True, False]
    assert result.waited_s.tolist() == [0.0, 2.5, 2.0]
    assert result.busy_s.tolist() == [4.0, 0.0, 2.0]
    assert result.device_share == result.budget_used == pytest.approx(2 / 3)
    assert result.device_busy == 1.0
    found = result.summary()
    assert (found["device_busy"], found["mean_wait_s"], found["dropped"]) == pytest.approx((1.0, 1.5, 1 / 3))
    assert found["mean_ttft_s"] == pytest.approx(6.5 / 3)
    one = dc.simulate_queue(dc.Workload([3.0], [1], [1]), dc.plan_server_only(), server, device, ttft_s=[1.0])
    assert math.isnan(one.device_busy)


def test_bad_values_are_named_as_by_simulate():
    load, server = dc.Workload([0.0], [5], [1]), dc.ServerProfile(dc.TTFTDistribution([0.5]), 50.0)
    device, plan = dc.DeviceProfile(10.0, 10.0), dc.plan_server_only()
    for arguments in [([5], plan, server, device), (load, None, server, device), (load, plan, server, server)]:
        with pytest.raises(dc.InputError, match="must be a"):
            dc.simulate_queue(*arguments, rng=np.random.default_rng(0))
    for match, given_ in [("rng", {}), ("nan", {"ttft_s": [float("nan")]}), ("neither", {"ttft_s": [0.1]})]:
        if match == "neither":
            given_ |= {"delays_s": [[np.inf], [np.inf]]}
        with pytest.raises(dc.InputError, match=match):
            dc.simulate_queue(load, plan, server, device, **given_)
    with pytest.raises(dc.InputError, match="device must be a DeviceProfile"):
        alone_s(load, server)


def test_the_year_does_not_change_who_wins():
    def queued(since):
        load = dc.Workload(since + np.arange(64) / 8, np.full(64, 3), np.full(64, 2))
        server, device = dc.ServerProfile(dc.TTFTDistribution([0.5]), 5.0), dc.DeviceProfile(10.0, 10.0)
        plan, rng = dc.plan_stochastic(1.0, dc.Constraint.DEVICE), np.random.default_rng(0)
        return dc.simulate_queue(load, plan, server, device, rng=rng)

    now, then = queued(0.0), queued(1.7e9)
    assert np.array_equal(now.device_start_s, then.device_start_s)
    assert np.array_equal(now.ttft_s, then.ttft_s)
