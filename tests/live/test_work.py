"""A piece of work runs in one task: what an endpoint holds over a `yield` is entered and left by that task."""

import asyncio
import gc
from contextlib import asynccontextmanager
from contextvars import ContextVar

import numpy as np
import pytest

import disco_core as dc
from artifact.measure.network_delay import LastHop
from disco_core.endpoints.base import Prefix, Token
from disco_core.live.work import Work
from tests.helpers.clock import run
from tests.helpers.replay import ReplayEndpoint

REQUEST = ContextVar("REQUEST", default="none")
BOTH = dc.plan_stochastic(1.0, dc.Constraint.DEVICE, both=True)


def in_a_context(inner, prefix):
    """Sets a variable for the length of the answer."""

    async def generate():
        token = REQUEST.set("mine")
        try:
            async for one in inner(prefix):
                assert REQUEST.get() == "mine"
                yield one
        finally:
            REQUEST.reset(token)  # ValueError in another context

    return generate()


def under_a_timeout(inner, prefix):
    async def generate():
        async with asyncio.timeout(100):
            async for one in inner(prefix):
                yield one

    return generate()


def out_of_a_task_group(inner, prefix):
    """A producer and its queue, as one writes it who reads from two sources."""

    async def generate():
        made = asyncio.Queue(1)

        async def produce():
            async for one in inner(prefix):
                await made.put(one)
            await made.put(None)

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            while (one := await made.get()) is not None:
                yield one

    return generate()


def under_a_lock(inner, prefix):
    """A context manager that only the task which entered it may leave."""

    @asynccontextmanager
    async def owned():
        owner = asyncio.current_task()
        try:
            yield
        finally:
            assert asyncio.current_task() is owner

    async def generate():
        async with owned():
            async for one in inner(prefix):
                yield one

    return generate()


WAYS = [in_a_context, under_a_timeout, out_of_a_task_group, under_a_lock]


def holding(way, *args, **options):
    """A replayed endpoint whose answers go through one of these."""
    end = ReplayEndpoint(*args, **options)
    replayed = end.generate
    end.generate = lambda prefix: way(replayed, prefix)
    return end


async def collect(live):
    """The tokens of an answer, and the tasks left after it."""
    tokens = [token.id async for token in live]
    return tokens, asyncio.all_tasks() - {asyncio.current_task()}


@pytest.mark.parametrize("delayed", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_an_endpoint_may_hold_over_a_yield_what_belongs_to_a_task(way, delayed):
    """To the end of an answer, as the race's loser, and as the source of a hand-over."""
    cost = dc.CostModel(1e-6, 1e-6, 0, 1e-7)
    rule = dc.MigrationRule(
        cost, dc.LengthDistribution([200], [1]), dc.TTFTDistribution([0.3]), dc.DeviceProfile(500.0, 25.0)
    )
    cases = [
        (dc.plan_server_only(), None, 0.1),
        (BOTH, None, 0.1),
        (BOTH, None, 0.9),
        (dc.plan_server_only(), rule, 0.1),
    ]
    for plan, moves, first_s in cases:
        server, device = (holding(way, first, [0.02], 60, name=name) for first, name in ((first_s, "s"), (0.3, "d")))
        far = LastHop(server, dc.TTFTDistribution([0.1]), seed=0) if delayed else server
        rng = np.random.default_rng(0)
        live = dc.stream(
            [0] * 9, plan=plan, server=far, device=device, rule=moves, max_tokens=60, wait=False, rng=rng
        )
        tokens, left = run(collect(live))
        assert tokens == list(range(60))
        assert (live.record.failures, live.record.unconfirmed) == ([], [0, 0])
        assert (server.running, device.running, left) == (0, 0, set())
        assert bool(live.record.migrated_at) == (moves is not None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("after_s", [0.05, 0.3, 0.305, 0.31])
def test_it_is_left_by_the_same_task_where_the_reader_leaves(way, after_s):
    """Before its first token, at the instant of a later one, and between two."""
    server, device = (holding(way, 0.1, [0.01], 60) for _ in range(2))
    live = dc.stream([0], plan=BOTH, server=server, device=device, rng=np.random.default_rng(0), wait=False)

    async def leave():
        reading = asyncio.create_task(collect(live))
        await asyncio.sleep(after_s)
        await live.aclose()
        await reading
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert run(leave()) == set()
    assert (server.running, device.running) == (0, 0)
    assert live.record.unconfirmed == [0, 0]


class Limited(ReplayEndpoint):
    """It gives itself so long for an answer, its reader's pauses included."""

    limit_s = 0.0

    async def generate(self, prefix):
        async with asyncio.timeout(self.limit_s):
            async for token in super().generate(prefix):
                yield token


class Grouped(ReplayEndpoint):
    """Something that runs beside the answer fails."""

    limit_s = 0.0

    async def generate(self, prefix):
        async def watch():
            await asyncio.sleep(self.limit_s)
            raise dc.CutError(self.name, "the heartbeat stopped")

        async with asyncio.TaskGroup() as group:
            group.create_task(watch())
            async for token in super().generate(prefix):
                yield token


@pytest.mark.parametrize(("kind", "told"), [(Limited, "TimeoutError: "), (Grouped, "the heartbeat stopped")])
def test_an_endpoint_that_gives_up_by_itself_has_failed_and_the_other_goes_on(kind, told):
    server, device = kind(0.5, [0.125], 8, name="server"), ReplayEndpoint(0.25, [0.0625], 8)
    server.limit_s = 0.7
    live = dc.stream("hi", plan=dc.plan_server_only(), server=server, device=device, max_tokens=8, wait=False)
    tokens, left = run(collect(live))
    assert (tokens, left) == (list(range(8)), set())
    assert str(live.record.failures[0]) == f"server: {told}"
    assert [token.generated_s for token in live.record.tokens[:3]] == [0.5, 0.625, 0.7 + 0.25]
    assert (server.running, live.record.unconfirmed) == (0, [0, 0])


@pytest.mark.parametrize(("kind", "told"), [(Limited, "TimeoutError: "), (Grouped, "the heartbeat stopped")])
def test_it_may_give_up_while_nobody_asks(kind, told):
    """What it holds is left at once, and the next question is answered with the failure."""
    server = kind(0.5, [0.125], 8, name="server")
    server.limit_s = 0.7

    async def ask():
        work = Work(dc.End.SERVER, server, Prefix("hi", (), 8), stall_s=30.0)
        assert (await work.next).index == 0
        await asyncio.sleep(60)
        assert server.running == 0
        work.ask()
        with pytest.raises(dc.CutError) as failure:
            await work.next
        await work.close()
        return str(failure.value)

    assert run(ask()) == f"server: {told}"


@pytest.mark.parametrize("closes", [False, True])
def test_it_may_overcome_what_interrupts_it(closes):
    """A time limit within the source ends it: the next token is the other endpoint's, also where nobody waits."""

    class Second(ReplayEndpoint):
        async def generate(self, prefix):
            try:
                async with asyncio.timeout(0.7):
                    yield Token(0, "a", 0)
                    await asyncio.sleep(9)
            except TimeoutError:
                yield Token(1, "b", 1)

    async def ask():
        work = Work(dc.End.SERVER, Second(0.5, [0.125], 8), Prefix("hi", (), 8), stall_s=30.0)
        found = [(await work.next).text]
        await asyncio.sleep(60)
        if not closes:
            for _ in range(2):
                work.ask()
                found.append(await work.next)
        await work.close()
        return found

    found = run(ask())
    assert found[:1] + [one and one.text for one in found[1:]] == (["a"] if closes else ["a", "b", None])


def test_an_endpoint_without_a_confirmation_is_cancelled_once_more():
    """So that nothing of it is left in the loop."""

    class Stubborn(ReplayEndpoint):
        async def generate(self, prefix):
            try:
                async for token in super().generate(prefix):
                    yield token
            finally:
                await asyncio.sleep(1e9)

    server, device = Stubborn(0.5, [0.125], 80), ReplayEndpoint(0.25, [0.0625], 80)
    live = dc.stream("hi", plan=dc.plan_server_only(), server=server, device=device, confirm_s=4)

    async def leave():
        async for _ in live:
            break
        await live.aclose()
        await asyncio.sleep(0.01)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert run(leave()) == set()
    assert live.record.unconfirmed == [1, 0]


@pytest.mark.parametrize("delayed", [False, True])
def test_an_endpoint_that_fails_once_nobody_waits_is_not_logged_and_leaves_nothing(delayed):
    class Late(ReplayEndpoint):
        async def generate(self, prefix):
            try:
                async for token in super().generate(prefix):
                    yield token
            finally:
                try:
                    await asyncio.sleep(1e9)
                finally:
                    raise dc.StalledError(self.name, "it did not confirm that it stopped")

    server, device = Late(0.5, [0.125], 80), ReplayEndpoint(0.25, [0.0625], 80)
    far = LastHop(server, dc.TTFTDistribution([0.1]), seed=0) if delayed else server
    live, said = dc.stream("hi", plan=dc.plan_server_only(), server=far, device=device, confirm_s=4), []

    async def leave():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context["message"]))
        async for _ in live:
            break
        await live.aclose()
        await asyncio.sleep(0.01)
        gc.collect()
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert run(leave()) == set()
    gc.collect()
    assert said == []
    assert live.record.unconfirmed == [1, 0]


@pytest.mark.parametrize("back", [0, 1])
def test_an_endpoint_that_answers_a_cancel_with_a_token_is_closed(back):
    """A new one, or one that was here before."""

    class Flushes(ReplayEndpoint):
        async def generate(self, prefix):
            try:
                async for token in super().generate(prefix):
                    last = token
                    yield token
            except asyncio.CancelledError:
                yield Token(last.index + 1 - back, "x", 0)
                await asyncio.sleep(1e9)

    server, device = Flushes(0.25, [0.125], 80), ReplayEndpoint(0.25, [0.125], 80)
    live = dc.stream("hi", plan=dc.plan_server_only(), server=server, device=device, max_tokens=80, wait=False)

    async def leave():
        async for token in live:
            if token.index == 3:
                break
        await asyncio.sleep(0.01)
        began = asyncio.get_running_loop().time()
        await live.aclose()
        return asyncio.get_running_loop().time() - began

    assert run(leave()) == 0.0
    assert live.record.unconfirmed == [0, 0]
    assert live.record.decode == [5, 0]


def test_one_limit_after_the_other_is_told_to_what_holds_them():
    """Both run out while nobody asks: the tokens that follow come in order."""

    class Nested(ReplayEndpoint):
        async def generate(self, prefix):
            try:
                async with asyncio.timeout(10):
                    try:
                        async with asyncio.timeout(5):
                            yield Token(0, "a")
                            await asyncio.sleep(99)
                    except TimeoutError:
                        yield Token(1, "b")
                    await asyncio.sleep(99)
            except TimeoutError:
                yield Token(2, "c")

    async def ask():
        work = Work(dc.End.SERVER, Nested(0.5, [0.125], 8), Prefix("hi", (), 8), stall_s=30.0)
        found = [(await work.next).text]
        await asyncio.sleep(60)
        for _ in range(3):
            work.ask()
            found.append(await work.next)
        await work.close()
        return found

    a, b, c, end = run(ask())
    assert (a, b.text, c.text, end) == ("a", "b", "c", None)


MOVES = dc.MigrationRule(
    dc.CostModel(1e-6, 1e-6, 0, 1e-7),
    dc.LengthDistribution([200], [1]),
    dc.TTFTDistribution([0.3]),
    dc.DeviceProfile(500.0, 25.0),
    reading_rate=1.0,
)


@pytest.mark.parametrize("way", [None, *WAYS])
@pytest.mark.parametrize(
    ("plan", "rule", "at_s"),
    [(BOTH, None, 0.25), (dc.plan_server_only(), MOVES, 0.375), (dc.plan_server_only(), None, 1.125)],
    ids=["a tie", "a hand-over", "the last token"],
)
def test_the_loop_may_end_at_any_moment(way, plan, rule, at_s):
    """Its end cancels all tasks, also those that were to stop what runs: none of ours waits for another then."""
    for steps in range(12):
        kept, live = [], None

        async def main(steps=steps, kept=kept):
            nonlocal live
            if way is None:
                server, device = (ReplayEndpoint(0.25, [0.125], 8, name=name) for name in ("server", "device"))
            else:
                server, device = (holding(way, 0.25, [0.125], 8, name=name) for name in ("server", "device"))
            rng = np.random.default_rng(0)
            live = dc.stream(
                "hi", plan=plan, server=server, device=device, rule=rule, max_tokens=8, wait=False, rng=rng
            )
            kept += [server, device, asyncio.create_task(collect(live))]
            await asyncio.sleep(at_s)
            for _ in range(steps):
                await asyncio.sleep(0)

        run(main())
        server, device, _ = kept
        assert (server.running, device.running) == (0, 0)
        uncharged = [server.made - live.record.decode[0], device.made - live.record.decode[1]]
        assert uncharged in ([0, 0], [0, 1], [1, 0])  # at most a loser's token of the winner's own instant
