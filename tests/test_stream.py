"""The live machine on replayed ends under a virtual clock: it agrees with the simulator, and loses nothing."""

import asyncio
import gc
import math
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from test_migration import rules

import disco_core as dc
from artifact.measure.network_delay import LastHop
from disco_core import stream
from disco_core.endpoints.base import Token, until
from tests.helpers.clock import run
from tests.helpers.replay import Failure, ReplayEndpoint
from tests.helpers.strategies import plans

MS = st.integers(1, 40).map(lambda ms: ms / 1000)
DEVICE = dc.DeviceProfile(500.0, 25.0)
SERVER_RATE = 50.0


def ends(server_ttft, length, **server):
    server = ReplayEndpoint(server_ttft, [1 / SERVER_RATE], length, name="server", **server)
    return server, ReplayEndpoint(lambda n: float(DEVICE.ttft(n)), [1 / DEVICE.decode_rate], length, name="device")


async def collect(running):
    tokens, error = [], None
    try:
        async for token in running:
            tokens.append(token)
    except dc.StreamError as failure:
        error = failure
    return tokens, error


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 60), MS), min_size=1, max_size=6), plans(), rules())
def test_live_and_simulated_agree_exactly(requests, plan, rule):
    """TTFT, winner, hand-over, delayed tokens and ledger of every request, on a grid of whole ms, ties included."""
    prompts, outputs, ttft_s = zip(*requests, strict=True)
    load = dc.Workload(np.zeros(len(requests)), prompts, outputs)
    delays = plan.draw(load.prompt_tokens, np.random.default_rng(5))
    profile = dc.ServerProfile(dc.TTFTDistribution(ttft_s), SERVER_RATE)
    result = dc.simulate(load, plan, profile, DEVICE, rule.cost, rule, ttft_s=ttft_s, delays_s=delays)
    for i, (l, length, first) in enumerate(requests):
        server, device = ends(first, length)
        fixed = dc.DispatchPlan("drawn", [l], delays[:, i].reshape(2, 1, 1), [[1.0]])
        live = stream([0] * l, plan=fixed, server=server, device=device, rule=rule, max_tokens=length, wait=False)
        tokens, error = run(collect(live))
        record = live.record
        assert error is None
        assert [token.id for token in tokens] == list(range(length))
        assert record.ttft_s == result.ttft_s[i]
        assert record.winner == result.winner[i]
        assert record.migrated_at == result.migrated_at[i]
        assert record.delay_num == result.delay_num[i]
        assert record.started == [result.server_started[i], result.device_started[i]]
        assert record.prefill == [result.ledger.server_prefill[i], result.ledger.device_prefill[i]]
        assert record.decode == [result.ledger.server_decode[i], result.ledger.device_decode[i]]
        assert (server.running, device.running) == (0, 0)
        event("migrated" if record.migrated_at else "stayed")


failures = st.none() | st.sampled_from(Failure)


@settings(max_examples=300)
@given(
    st.integers(1, 12),
    st.integers(1, 30),
    MS,
    plans(),
    st.none() | rules(),
    failures,
    failures,
    st.integers(0, 12),
    st.integers(0, 12),
)
def test_nothing_is_lost_repeated_or_reordered(l, length, first, plan, rule, server_fails, device_fails, at, at2):
    server, device = ends(first, length, fail=server_fails, at=at, cancel_s=0.5)
    device.fail, device.at, device.cancel_s = device_fails, at2, 0.5
    rng = np.random.default_rng(0)
    live = stream([0] * l, plan=plan, server=server, device=device, rule=rule, max_tokens=length, rng=rng, wait=False)
    tokens, error = run(collect(live))
    record = live.record
    assert [token.id for token in tokens] == list(range(len(tokens)))
    assert [token.index for token in tokens] == list(range(len(tokens)))
    assert record.complete == (error is None) == (len(tokens) == length)
    assert (record.error is error) or error is None
    assert (server.running, device.running) == (0, 0)
    assert record.prefill == [server.prefilled, device.prefilled]
    # each end counted for itself; not charged is one token of a loser: at the winner's own instant, or, where the
    # rule keeps it, the one that tells that its prefill has ended
    uncharged = [server.made - record.decode[0], device.made - record.decode[1]]
    assert uncharged in ([0, 0], [0, 1], [1, 0])
    if uncharged != [0, 0]:
        assert record.started == [True, True]
        assert uncharged[record.winner] == 0
        assert record.winner == dc.End.SERVER or rule.keeps_loser
    assert not any("AssertionError" in str(failure) for failure in record.failures)  # the ends check their prefixes
    assert record.unconfirmed == [0, 0]
    times = [(token.generated_s, token.released_s) for token in tokens]
    assert times == sorted(times)
    if not (server_fails or device_fails):
        assert error is None
    event("whole" if not error else "failed")


@given(st.integers(1, 12), st.integers(1, 40), MS, plans(), st.none() | rules())
def test_waiting_and_measuring_record_the_same_times(l, length, first, plan, rule):
    recorded = []
    for wait in (True, False):
        server, device = ends(first, length)
        rng = np.random.default_rng(1)
        live = stream(
            [0] * l, plan=plan, server=server, device=device, rule=rule, max_tokens=length, rng=rng, wait=wait
        )

        async def timed(live=live):
            return [(token, asyncio.get_running_loop().time()) async for token in live]

        arrived = run(timed())
        recorded.append((live.record.tokens, live.record.handovers))
        assert live.record.late_s == [0.0] * len(arrived) * wait
        if wait:
            assert all(at == token.released_s for token, at in arrived)
    assert recorded[0] == recorded[1]


def test_how_late_a_wake_up_came_is_a_column_of_its_own():
    """A reader who is slow to come back is late, and the times of release stay what they were."""
    server, device = ends(0.1, 5)
    live = stream([0], plan=dc.plan_server_only(), server=server, device=device, max_tokens=5)

    async def slowly():
        async for token in live:
            if token.index == 1:
                await asyncio.sleep(0.5)  # more than two tokens' time

    run(slowly())
    third = 0.5 - 1 / 4.8
    assert live.record.late_s == pytest.approx([0, 0, third, third - 1 / 4.8, 0])
    assert [token.released_s for token in live.record.tokens] == pytest.approx([0.1 + i / 4.8 for i in range(5)])


@given(st.integers(1, 12), MS, plans(), st.none() | rules(), st.floats(0, 0.4))
def test_the_readers_cancel_ends_both_ends(l, first, plan, rule, after):
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


@pytest.mark.parametrize("vocabulary", ["integers", "other"])
def test_ids_move_between_equal_vocabularies_only(vocabulary):
    cost = dc.CostModel(0, 1e-7, 1e-6, 1e-6)
    rule = dc.MigrationRule(cost, dc.LengthDistribution([200], [1]), dc.TTFTDistribution([0.3]), DEVICE)
    server, device = ends(0.3, 100)
    server.vocabulary = vocabulary
    live = stream("0" * 20, plan=dc.plan_device_only(), server=server, device=device, rule=rule, max_tokens=100)
    tokens, error = run(collect(live))
    assert error is None
    assert "".join(token.text for token in tokens) == "".join(f"{i} " for i in range(100))
    at = live.record.migrated_at
    assert at > 0
    moved = server.seen[0].generated
    assert [token.text for token in moved] == [token.text for token in tokens[:at]]
    assert [token.id for token in moved] == (list(range(at)) if vocabulary == "integers" else [None] * at)
    text = "".join(token.text for token in moved)  # in which the replayed end counts every character
    assert live.record.prefill == [20 + (at if vocabulary == "integers" else len(text)), 20]


@pytest.mark.parametrize("keeps", [False, True])
def test_a_loser_is_cancelled_or_keeps_prefilling(keeps):
    cost, distribution = dc.CostModel(1, 1, 1, 1), dc.TTFTDistribution([0.3])
    rule = dc.MigrationRule(cost, dc.LengthDistribution([9], [1]), distribution, DEVICE, keeps_loser=keeps)
    server, device = ends(0.05, 100)  # the device needs 0.2 s for its prefill, the server 2 s for the answer
    both = dc.plan_stochastic(1.0, dc.Constraint.DEVICE, both=True)
    rng = np.random.default_rng(0)
    live = stream([0] * 100, plan=both, server=server, device=device, rule=rule, max_tokens=100, rng=rng, wait=False)
    running = []

    async def watch():
        async for token in live:
            running.append((token.generated_s, device.running))

    run(watch())
    last = max(at for at, works in running if works)
    assert (last == pytest.approx(0.2, abs=0.03)) if keeps else (last < 0.08)
    assert live.record.decode == [100, 0]
    assert live.record.prefill == [100, 100]


class Refined(dc.MigrationRule):
    """A rule whose device reads the second half of the prompt only."""

    def prompt_for(self, end, prompt):
        return prompt[len(prompt) // 2 :] if end is dc.End.DEVICE else prompt


def test_the_rule_builds_the_prompt_of_each_end():
    cost = dc.CostModel(1e-6, 1e-6, 0, 1e-7)
    rule = Refined(cost, dc.LengthDistribution([200], [1]), dc.TTFTDistribution([0.3]), DEVICE)
    server, device = ends(0.05, 100)
    live = stream([*range(40)], plan=dc.plan_server_only(), server=server, device=device, rule=rule, max_tokens=100)
    tokens, error = run(collect(live))
    assert error is None
    assert [token.id for token in tokens] == list(range(100))
    at = live.record.migrated_at
    assert at > 0
    assert [server.seen[0].prompt, device.seen[0].prompt] == [list(range(40)), list(range(20, 40))]
    assert live.record.prefill == [40, 20 + at]


def test_a_refused_hand_over_says_why():
    cost = dc.CostModel(0, 1e-7, 1e-6, 1e-6)
    rule = dc.MigrationRule(cost, dc.LengthDistribution([200], [1]), dc.TTFTDistribution([0.3]), DEVICE)
    for change, word in (({"continues": False}, "open assistant turn"), ({"context": 60}, "60")):
        server, device = ends(0.3, 100)
        for name, value in change.items():
            setattr(server, name, value)
        live = stream([0] * 20, plan=dc.plan_device_only(), server=server, device=device, rule=rule, max_tokens=100)
        tokens, error = run(collect(live))
        assert error is None
        assert len(tokens) == 100
        assert live.record.migrated_at == 0
        assert len(live.record.refusals) == 1
        assert word in live.record.refusals[0]


# --- ends that hang


class Hung(ReplayEndpoint):
    """An end that takes `cancel_s` to confirm that it stopped, whatever else goes wrong."""

    async def generate(self, prefix):
        try:
            async for token in super().generate(prefix):
                yield token
        finally:
            await asyncio.sleep(self.cancel_s)


async def until_the_end(live):
    """What `collect` says, and the loop's time when all was over."""
    return *await collect(live), asyncio.get_running_loop().time()


@pytest.mark.parametrize(("cancel_s", "confirmed_s"), [(0.0, 0.0), (3.0, 3.0), (1e6, 5.0)])
def test_a_stalled_end_is_left_at_once_however_long_it_takes_to_confirm(cancel_s, confirmed_s):
    server = Hung(0.5, [0.125], 8, fail=Failure.STALL, at=3, cancel_s=cancel_s, name="server")
    device = ReplayEndpoint(0.25, [0.0625], 8, name="device")
    live = stream(
        [0] * 4,
        plan=dc.plan_server_only(),
        server=server,
        device=device,
        max_tokens=8,
        wait=False,
        stall_s=2.0,
        confirm_s=5.0,
    )
    tokens, error, ended = run(until_the_end(live))
    assert error is None
    assert [token.id for token in tokens] == list(range(8))
    assert tokens[2].generated_s == 0.75
    assert tokens[3].generated_s == 0.75 + 2.0 + 0.25
    assert ended == max(tokens[-1].generated_s, 2.75 + confirmed_s)
    assert live.record.unconfirmed == [int(confirmed_s == 5.0), 0]
    assert str(live.record.failures[0]) == "server: sent nothing for 2 s"


def test_an_end_that_never_answers_is_named_within_its_deadline():
    def silent(name):
        return Hung(1e9, [1.0], 8, cancel_s=1e9, name=name)

    both = dc.plan_stochastic(1.0, dc.Constraint.DEVICE, both=True)
    for plan, needed_s in ((dc.plan_server_only(), 4.0), (both, 2.0)):
        rng = np.random.default_rng(0)
        live = stream("hi", plan=plan, server=silent("there"), device=silent("here"), stall_s=2, confirm_s=5, rng=rng)
        tokens, error, ended = run(until_the_end(live))
        assert tokens == []
        assert str(error) == (
            "neither end could go on after 0 tokens: there: sent nothing for 2 s; here: sent nothing for 2 s"
        )
        assert [type(failure) for failure in live.record.failures] == [dc.StalledError] * 2
        assert live.record.error is error
        assert ended == needed_s + 5.0


def test_the_same_token_again_and_again_is_a_stall():
    class Stuck(ReplayEndpoint):
        async def generate(self, prefix):
            async for token in super().generate(prefix):
                yield token
                while token.index == 2:
                    await asyncio.sleep(0.5)
                    yield token

    server, device = Stuck(0.5, [0.125], 8, name="server"), ReplayEndpoint(0.25, [0.0625], 8, name="device")
    live = stream("hi", plan=dc.plan_server_only(), server=server, device=device, max_tokens=8, wait=False, stall_s=3)
    tokens, error = run(collect(live))
    assert error is None
    assert [token.id for token in tokens] == list(range(8))
    assert "sent nothing for 3 s" in str(live.record.failures[0])


def test_the_readers_cancel_waits_for_a_hung_end_for_a_while_only():
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


@pytest.mark.parametrize("hop", [False, True])
def test_an_end_that_breaks_while_it_stops_is_not_confirmed_and_harms_nobody(hop):
    class Broken(ReplayEndpoint):
        async def generate(self, prefix):
            try:
                async for token in super().generate(prefix):
                    yield token
            finally:
                raise OSError("gone")

    both, rng = dc.plan_stochastic(1.0, dc.Constraint.DEVICE, both=True), np.random.default_rng(0)
    server, device = Broken(0.9, [0.125], 8), ReplayEndpoint(0.25, [0.0625], 8)
    far = LastHop(server, dc.TTFTDistribution([0.125]), seed=0) if hop else server
    live = stream("hi", plan=both, server=far, device=device, max_tokens=8, wait=False, rng=rng)
    tokens, error = run(collect(live))
    assert (len(tokens), error) == (8, None)
    assert live.record.unconfirmed == [1, 0]


class OfItsOwn(BaseException):
    """Nothing that `except Exception` catches."""


@pytest.mark.parametrize("hop", [False, True])
@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (asyncio.CancelledError(), "it was cancelled"),
        (OfItsOwn("oh"), "OfItsOwn: oh"),
        (RuntimeError("oh"), "RuntimeError: oh"),
        (dc.CutError("server", "oh"), "oh"),
    ],
)
def test_whatever_an_end_raises_the_other_goes_on_at_once(raised, told, hop):
    class Raising(ReplayEndpoint):
        async def generate(self, prefix):
            async for token in super().generate(prefix):
                if token.index == 2:
                    raise raised
                yield token

    server, device = Raising(0.5, [0.125], 8, name="server"), ReplayEndpoint(0.25, [0.0625], 8)
    far = LastHop(server, dc.TTFTDistribution([0.125]), seed=0) if hop else server
    live = stream("hi", plan=dc.plan_server_only(), server=far, device=device, max_tokens=8, wait=False)
    tokens, error = run(collect(live))
    assert (len(tokens), error) == (8, None)
    assert str(live.record.failures[0]) in (f"server: {told}", f"{far.name}: {told}")
    assert tokens[2].generated_s == tokens[1].generated_s + 0.125 + 0.25
    assert live.record.unconfirmed == [0, 0]


class Refusing(ReplayEndpoint):
    """Checks before it gives a generator."""

    def generate(self, prefix):
        raise dc.RefusedError(self.name, "no credit left")


class NoGenerator(ReplayEndpoint):
    def generate(self, prefix):
        return [Token(0, "a")]


class NoAsync(ReplayEndpoint):
    async def generate(self, prefix):
        return [Token(0, "a")]


class Says(ReplayEndpoint):
    """Something else than tokens."""

    said = None

    async def generate(self, prefix):
        yield Token(0, "a")
        yield self.said


def saying(what):
    return type("Says", (Says,), {"said": what})


@pytest.mark.parametrize(
    ("kind", "first", "word"),
    [
        (Refusing, 0, "no credit left"),
        (NoGenerator, 0, "generate must give an async generator, got list"),
        (NoAsync, 0, "generate must give an async generator, got coroutine"),
        (saying("text"), 1, "which is no Token"),
        (saying(Token(1, None)), 1, "which is no Token"),
        (saying(Token("1", "a")), 1, "which is no Token"),
        (saying(Token(1, "\ud83c")), 1, "surrogates not allowed"),
    ],
)
def test_an_endpoint_that_is_written_wrongly_fails_as_any_other(kind, first, word):
    server, device = kind(0.5, [0.125], 8, name="server"), ReplayEndpoint(0.25, [0.0625], 8, vocabulary="other")
    live = stream("hi", plan=dc.plan_server_only(), server=server, device=device, max_tokens=8, wait=False)
    tokens, error = run(collect(live))
    assert (len(tokens), error) == (8, None)
    assert [token.source for token in tokens] == [dc.End.SERVER] * first + [dc.End.DEVICE] * (8 - first)
    assert word in str(live.record.failures[0])
    both = stream("hi", plan=dc.plan_device_only(), server=device, device=server, max_tokens=8, wait=False)
    assert (len(run(collect(both))[0]), both.record.failures[0].endpoint) == (8, "server")


@pytest.mark.parametrize("hop", [False, True])
def test_an_end_that_gives_nothing_where_a_token_should_be_is_no_end_of_the_answer(hop):
    server, device = saying(None)(0.5, [0.125], 8, name="server"), ReplayEndpoint(0.25, [0.0625], 8)
    far = LastHop(server, dc.TTFTDistribution([0.125]), seed=0) if hop else server
    live = stream("hi", plan=dc.plan_server_only(), server=far, device=device, max_tokens=8, wait=False)
    tokens, error = run(collect(live))
    assert (len(tokens), error) == (8, None)
    assert "sent None" in str(live.record.failures[0])


@pytest.mark.parametrize("what", ["ahead", "read"])
@pytest.mark.parametrize("told", [ValueError("lost count"), "many"])
def test_an_end_that_cannot_tell_how_far_it_is_answers_and_is_charged(what, told):
    def tell(_):
        if isinstance(told, Exception):
            raise told
        return told

    server, device = (ReplayEndpoint(0.25, [0.125], 8, name=name) for name in ("server", "device"))
    setattr(server, what, tell)
    cost = dc.CostModel(0.0, 0.0, 0.0, 1e-6)
    rule = dc.MigrationRule(cost, dc.LengthDistribution([60], [1]), dc.TTFTDistribution([0.1]), DEVICE)
    live = stream("hi", plan=dc.plan_server_only(), server=server, device=device, rule=rule, max_tokens=8, wait=False)
    if what == "ahead":
        with pytest.warns(UserWarning, match="server cannot tell `ahead`"):
            tokens, error = run(collect(live))
    else:
        tokens, error = run(collect(live))  # this rule never asks
    assert (len(tokens), error, live.record.failures) == (8, None, [])
    assert (live.record.decode, live.record.unconfirmed) == ([8, 0], [0, 0])


@pytest.mark.parametrize("told", [ConnectionError("the tokenizer is down"), None, -1])
def test_an_end_that_cannot_count_answers_all_the_same(told):
    class Uncounted(ReplayEndpoint):
        def count(self, prompt):
            if isinstance(told, Exception):
                raise told
            return told

    server, device = Uncounted(0.5, [0.125], 8, name="server"), ReplayEndpoint(0.25, [0.0625], 8)
    live = stream("a" * 40, plan=dc.plan_server_only(), server=server, device=device, max_tokens=8, wait=False)
    with pytest.warns(UserWarning, match="server cannot count tokens"):
        tokens, error = run(collect(live))
    assert (len(tokens), error, live.record.failures) == (8, None, [])
    assert live.record.prefill == [10, 0]


def test_text_that_is_read_again_has_one_bos():
    class Opened(ReplayEndpoint):
        def count(self, prompt):
            return 1 + len(prompt)

    server = ReplayEndpoint(0.25, [0.125], 8, fail=Failure.DIE, at=3, vocabulary="other")
    device = Opened(0.25, [0.125], 8)
    live = stream("four", plan=dc.plan_server_only(), server=server, device=device, max_tokens=8, wait=False)
    assert run(collect(live))[1] is None
    assert live.record.prefill == [4, 1 + len("four0 1 2 ")]


def test_ids_are_no_prompt_for_two_vocabularies():
    server, device = ends(0.1, 9)
    server.vocabulary = "other"
    with pytest.raises(dc.InputError, match="different vocabularies"):
        stream([1, 2], plan=dc.plan_server_only(), server=server, device=device)


def test_a_token_made_when_it_is_due_is_not_delayed():
    server, device = (ReplayEndpoint(1.0, [0.25], 8) for _ in range(2))
    live = stream(
        [0] * 4, plan=dc.plan_server_only(), server=server, device=device, max_tokens=8, reading_rate=4.0, wait=False
    )
    tokens, _ = run(collect(live))
    assert [token.due_s for token in tokens] == [token.generated_s for token in tokens]
    assert live.record.delay_num == dc.delayed([token.generated_s for token in tokens], 4.0).sum() == 0


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
        sleeping = asyncio.create_task(until(1.0))
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
def test_an_answer_that_is_left_in_any_way_ends_both_ends(loop, how):
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
    """Cancelled again and again while the ends stop, the reader gets it when they have, or `confirm_s` later."""
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


# --- what a user may get wrong


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt": ""},
        {"prompt": []},
        {"prompt": None},
        {"prompt": 7},
        {"prompt": b"bytes"},
        {"prompt": ["a", "b"]},
        {"prompt": [1.5]},
        {"prompt": [[1, 2]]},
        {"prompt": {1: 2}},
        {"prompt": "\ud800"},
        {"max_tokens": 0},
        {"max_tokens": -3},
        {"max_tokens": 2.5},
        {"max_tokens": float("nan")},
        {"max_tokens": "9"},
        {"max_tokens": True},
        {"max_tokens": None},
        {"server": None},
        {"server": "http://127.0.0.1:8080"},
        {"device": ReplayEndpoint},
        {"plan": None},
        {"plan": 0.3},
        {"rule": "cheapest"},
        {"reading_rate": 0},
        {"stall_s": -1},
        {"stall_s": float("inf")},
        {"confirm_s": 0},
        {"seed": -1},
        {"seed": 0.5},
        {"start_s": "now"},
        {"rng": 7},
        {"wait": "no"},
    ],
)
def test_bad_arguments_are_named_before_anything_starts(bad):
    server, device = ends(0.1, 9)
    plan = dc.plan_stochastic(0.5, dc.Constraint.DEVICE)
    good = {"prompt": "hi", "plan": plan, "server": server, "device": device, "rng": np.random.default_rng(0)}
    with pytest.raises(dc.InputError, match=f"^{next(iter(bad))} must"):
        stream(**(good | bad))
    assert server.seen == device.seen == []


def test_what_an_endpoint_lacks_is_named():
    class Half:
        name, vocabulary, context = "half", "integers", None

        def generate(self, prefix):
            raise AssertionError

    with pytest.raises(dc.InputError, match=r"which has no continues, count$"):
        stream("hi", plan=dc.plan_server_only(), server=Half(), device=ends(0.1, 9)[1])


@pytest.mark.parametrize(
    "bad",
    [
        {"ttft_s": -1},
        {"token_gaps_s": []},
        {"token_gaps_s": [0.1, -0.1]},
        {"length": -1},
        {"fail": "DIE"},
        {"at": 0.5},
        {"cancel_s": float("nan")},
    ],
)
def test_a_mistyped_replay_is_named(bad):
    with pytest.raises(dc.InputError, match=f"^{next(iter(bad))} must"):
        ReplayEndpoint(**({"ttft_s": 0.1, "token_gaps_s": [0.1], "length": 3} | bad))


def test_a_prompt_may_be_an_array_of_ids():
    server, device = ends(0.1, 3)
    live = stream(np.arange(4), plan=dc.plan_server_only(), server=server, device=device, max_tokens=3, wait=False)
    assert run(collect(live))[1] is None
    assert server.seen[0].prompt == [0, 1, 2, 3]


def test_a_prompt_over_one_context_goes_to_the_other_end_and_over_both_is_an_error_that_names_them():
    for plan in (dc.plan_server_only(), dc.plan_device_only()):
        server, device = ends(0.1, 9, context=64)
        live = stream([0] * 60, plan=plan, server=server, device=device, max_tokens=9, wait=False)
        tokens, error = run(collect(live))
        assert (len(tokens), error, live.record.winner) == (9, None, dc.End.DEVICE)
        device.context = 32
        live = stream([0] * 60, plan=plan, server=server, device=device, max_tokens=9, wait=False)
        tokens, error, ended = run(until_the_end(live))
        assert (tokens, ended) == ([], 0.0)
        assert "server: prompt and answer need 69 tokens of context, it has 64" in str(error)
        assert "device: prompt and answer need 69 tokens of context, it has 32" in str(error)
        assert [type(failure) for failure in live.record.failures] == [dc.RefusedError] * 2


def test_each_end_is_asked_once_how_long_its_prompt_is():
    class Counting(ReplayEndpoint):
        def count(self, prompt):
            asked.append(self.name)
            return len(prompt)

    cost, asked = dc.CostModel(0, 1e-7, 1e-6, 1e-6), []
    rule = dc.MigrationRule(cost, dc.LengthDistribution([200], [1]), dc.TTFTDistribution([0.3]), DEVICE)
    server = Counting(0.3, [1 / SERVER_RATE], 100, name="server", continues=False)
    device = Counting(0.1, [1 / DEVICE.decode_rate], 100, name="device")
    live = stream([0] * 20, plan=dc.plan_device_only(), server=server, device=device, rule=rule, max_tokens=100)
    assert run(collect(live))[1] is None
    assert live.record.refusals
    assert sorted(asked) == ["device", "server"]
