"""A reader who leaves, in whatever way, ends both endpoints, and nothing is logged or left running."""

import asyncio
import gc
import math
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from disco_core import stream
from disco_core.endpoints.base import sleep_until
from tests.helpers.clock import run
from tests.helpers.replay import Failure, ReplayEndpoint
from tests.helpers.strategies import plans, rules
from tests.helpers.streams import MS, Hung, collect, ends


@given(st.integers(1, 12), MS, plans(), st.none() | rules(), st.floats(0, 0.4))
def test_the_readers_cancel_ends_both_endpoints(l, first, plan, rule, after):
    server, device = ends(first, 40, fail=Failure.SLOW_CANCEL, cancel_s=0.2)
    live = stream(
        [0] * l, plan=plan, server=server, device=device, rule=rule, max_tokens=40, rng=np.random.default_rng(2)
    )

    async def leave():
        try:
            async with asyncio.timeout(after):
                async for _ in live:
                    pass
        except TimeoutError:
            await live.aclose()
        return server.running, device.running

    assert run(leave()) == (0, 0)
    assert live.record.handovers == [one for one in live.record.handovers if one.reason is None]


def test_the_readers_cancel_waits_for_a_hung_endpoint_for_a_while_only():
    server, device = Hung(0.5, [0.125], 80, cancel_s=1e9), ReplayEndpoint(0.25, [0.0625], 80)
    live = stream("hi", plan=dc.plan_server_only(), server=server, device=device, confirm_s=4)

    async def leave():
        async for token in live:
            if token.index == 3:
                break
        began = asyncio.get_running_loop().time()
        await live.aclose()
        return asyncio.get_running_loop().time() - began

    assert run(leave()) == pytest.approx(4.0)
    assert live.record.unconfirmed == [1, 0]
    assert not live.record.complete


@pytest.mark.parametrize("wait", [False, True])
def test_the_readers_cancel_may_come_from_another_task(wait):
    server, device = ReplayEndpoint(0.25, [0.125], 100), ReplayEndpoint(60, [1], 100)
    live = stream("hi", plan=dc.plan_server_only(), server=server, device=device, max_tokens=100, wait=wait)

    async def stop():
        reading = asyncio.create_task(collect(live))
        await asyncio.sleep(0.8)
        await live.aclose()
        assert (server.running, asyncio.get_running_loop().time()) == (0, 0.8)
        return await reading

    tokens, error = run(stop())
    assert error is None
    assert len(tokens) == (3 if wait else 5)
    assert not live.record.complete


def test_a_cancel_at_the_instant_of_a_token_is_not_logged():
    logged = []

    async def cancelled():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: logged.append(context))
        sleeping = asyncio.create_task(sleep_until(1.0))
        loop.call_at(1.0, sleeping.cancel)
        await asyncio.sleep(0)
        await asyncio.wait([sleeping])

    run(cancelled())
    assert logged == []


def test_a_failure_that_no_reader_stayed_for_is_not_logged():
    server, device = ends(0.1, 9, fail=Failure.DIE, at=3)
    device.fail = Failure.REFUSE
    live = stream("hi", plan=dc.plan_server_only(), server=server, device=device, max_tokens=9)
    said = []

    async def leave():
        nonlocal live
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context["message"]))
        tokens = aiter(live)
        await anext(tokens)
        await asyncio.sleep(60)
        await live.aclose()
        error, live = live.record.error, None
        gc.collect()
        return error

    assert isinstance(run(leave()), dc.StreamError)
    assert said == []


@pytest.mark.parametrize("loop", [run, asyncio.run], ids=["virtual", "real"])
@pytest.mark.parametrize("how", ["break", "raise", "drop", "forget"])
def test_an_answer_that_is_left_in_any_way_ends_both_endpoints(loop, how):
    """Also where nobody closes it, or still knows it: the answer itself would take half an hour."""
    server, device = ends(0.01, 9999, fail=Failure.SLOW_CANCEL, cancel_s=0.05)
    both, rng = dc.plan_stochastic(1.0, dc.Constraint.DEVICE, both=True), np.random.default_rng(0)
    live = stream([0], plan=both, server=server, device=device, max_tokens=9999, rng=rng)

    async def some():
        async for token in live:
            if token.index == 1 and how == "raise":
                raise ZeroDivisionError
            if token.index == 1:
                break

    async def leave():
        nonlocal live
        if how in ("drop", "forget"):
            tokens = aiter(live)
            if how == "forget":
                live = None
            await anext(tokens)
            assert server.running == 1
            assert (await anext(tokens)).index == 1
            del tokens
        else:
            with suppress(ZeroDivisionError):
                await some()
        async with asyncio.timeout(10):
            while server.running or device.running:
                await asyncio.sleep(0.01)
        if live:
            assert [token async for token in live] == []  # it is over
            assert not live.record.complete

    loop(leave())


@pytest.mark.parametrize("loop", [run, asyncio.run], ids=["virtual", "real"])
def test_an_answer_left_as_a_context_has_ended(loop):
    server, device = ends(0.01, 9999, fail=Failure.SLOW_CANCEL, cancel_s=0.05)

    async def leave():
        answer = stream([0], plan=dc.plan_server_only(), server=server, device=device, max_tokens=9999, wait=False)
        async with answer as live:
            for more in (range(3), range(3, 6)):  # a loop within it may go on where another one was left
                async for token in live:
                    assert token.index in more
                    if token.index == more[-1]:
                        break
            assert server.running == 1
        assert (server.running, device.running) == (0, 0)
        assert live.record.decode == [server.made, 0]

    loop(leave())


@given(st.lists(st.floats(0.01, 6), max_size=4), st.none() | st.floats(0.01, 6), st.sampled_from([0.0, 2.0, 1e9]))
def test_another_cancel_does_not_leave_work_behind(cancels_s, timeout_s, cancel_s):
    """Cancelled again and again while the endpoints stop, the reader gets it when they have, or `confirm_s` later."""
    server, device = (Hung(0.1, [0.02], 9999, cancel_s=cancel_s, name=name) for name in ("server", "device"))
    both, rng = dc.plan_stochastic(1.0, dc.Constraint.DEVICE, both=True), np.random.default_rng(0)
    live = stream([0], plan=both, server=server, device=device, max_tokens=9999, rng=rng, confirm_s=4.0)

    async def read():
        async with asyncio.timeout(timeout_s), live:
            async for token in live:
                if token.index == 1:
                    break

    async def go():
        loop = asyncio.get_running_loop()
        reader = asyncio.create_task(read())
        for when in cancels_s:
            loop.call_at(when, reader.cancel)
        await asyncio.wait([reader])
        return reader, loop.time(), (server.running, device.running)

    reader, at, running = run(go())
    interrupts = [*cancels_s, math.inf if timeout_s is None else timeout_s]
    left = min(*interrupts, 0.1 + 1 / 4.8)
    assert at == pytest.approx(left + min(cancel_s, 4.0))
    assert cancel_s == 1e9 or running == (0, 0)
    assert live.record.unconfirmed == [cancel_s == 1e9] * 2
    if any(when < at for when in cancels_s):
        assert reader.cancelled()
    elif interrupts[-1] < at:
        assert isinstance(reader.exception(), TimeoutError)
    elif min(interrupts) > at:
        assert reader.exception() is None


def test_a_stream_that_was_closed_before_it_began_starts_nothing():
    server, device = ends(0.1, 9)
    live = stream("hi", plan=dc.plan_server_only(), server=server, device=device)

    async def leave():
        await live.aclose()
        return [token async for token in live]

    assert run(leave()) == []
    assert live.record.started == [False, False]
