"""An endpoint fails, stalls or is written wrongly: the other one goes on, and no token is lost or repeated."""

import asyncio

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import disco_core as dc
from artifact.measure.network_delay import LastHop
from disco_core import stream
from disco_core.endpoints.base import Token
from tests.helpers.clock import run
from tests.helpers.replay import Failure, ReplayEndpoint
from tests.helpers.strategies import plans, rules
from tests.helpers.streams import DEVICE, MS, Hung, collect, ends, failures, until_the_end


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
    # each endpoint counted for itself; not charged is one token of a loser: at the winner's instant, or, where the
    # rule keeps it, the one that tells that its prefill has ended
    uncharged = [server.made - record.decode[0], device.made - record.decode[1]]
    assert uncharged in ([0, 0], [0, 1], [1, 0])
    if uncharged != [0, 0]:
        assert record.started == [True, True]
        assert uncharged[record.winner] == 0
        assert record.winner == dc.End.SERVER or rule.keeps_loser
    assert not any("AssertionError" in str(failure) for failure in record.failures)  # prefixes are checked
    assert record.unconfirmed == [0, 0]
    times = [(token.generated_s, token.released_s) for token in tokens]
    assert times == sorted(times)
    if not (server_fails or device_fails):
        assert error is None
    event("whole" if not error else "failed")


@pytest.mark.parametrize(("cancel_s", "confirmed_s"), [(0.0, 0.0), (3.0, 3.0), (1e6, 5.0)])
def test_a_stalled_endpoint_is_left_at_once_however_long_it_takes_to_confirm(cancel_s, confirmed_s):
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


def test_an_endpoint_that_never_answers_is_named_within_its_deadline():
    def silent(name):
        return Hung(1e9, [1.0], 8, cancel_s=1e9, name=name)

    both = dc.plan_stochastic(1.0, dc.Constraint.DEVICE, both=True)
    for plan, needed_s in ((dc.plan_server_only(), 4.0), (both, 2.0)):
        rng = np.random.default_rng(0)
        live = stream("hi", plan=plan, server=silent("there"), device=silent("here"), stall_s=2, confirm_s=5, rng=rng)
        tokens, error, ended = run(until_the_end(live))
        assert tokens == []
        assert str(error) == (
            "neither endpoint could continue after 0 tokens: there: sent nothing for 2 s; here: sent nothing for 2 s"
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


@pytest.mark.parametrize("delayed", [False, True])
def test_an_endpoint_that_breaks_while_it_stops_is_unconfirmed_and_the_answer_complete(delayed):
    class Broken(ReplayEndpoint):
        async def generate(self, prefix):
            try:
                async for token in super().generate(prefix):
                    yield token
            finally:
                raise OSError("gone")

    both, rng = dc.plan_stochastic(1.0, dc.Constraint.DEVICE, both=True), np.random.default_rng(0)
    server, device = Broken(0.9, [0.125], 8), ReplayEndpoint(0.25, [0.0625], 8)
    far = LastHop(server, dc.TTFTDistribution([0.125]), seed=0) if delayed else server
    live = stream("hi", plan=both, server=far, device=device, max_tokens=8, wait=False, rng=rng)
    tokens, error = run(collect(live))
    assert (len(tokens), error) == (8, None)
    assert live.record.unconfirmed == [1, 0]


class OfItsOwn(BaseException):
    """Nothing that `except Exception` catches."""


@pytest.mark.parametrize("delayed", [False, True])
@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (asyncio.CancelledError(), "it was cancelled"),
        (OfItsOwn("oh"), "OfItsOwn: oh"),
        (RuntimeError("oh"), "RuntimeError: oh"),
        (dc.CutError("server", "oh"), "oh"),
    ],
)
def test_whatever_an_endpoint_raises_the_other_goes_on_at_once(raised, told, delayed):
    class Raising(ReplayEndpoint):
        async def generate(self, prefix):
            async for token in super().generate(prefix):
                if token.index == 2:
                    raise raised
                yield token

    server, device = Raising(0.5, [0.125], 8, name="server"), ReplayEndpoint(0.25, [0.0625], 8)
    far = LastHop(server, dc.TTFTDistribution([0.125]), seed=0) if delayed else server
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


@pytest.mark.parametrize("delayed", [False, True])
def test_an_endpoint_that_yields_none_has_not_ended_the_answer(delayed):
    server, device = saying(None)(0.5, [0.125], 8, name="server"), ReplayEndpoint(0.25, [0.0625], 8)
    far = LastHop(server, dc.TTFTDistribution([0.125]), seed=0) if delayed else server
    live = stream("hi", plan=dc.plan_server_only(), server=far, device=device, max_tokens=8, wait=False)
    tokens, error = run(collect(live))
    assert (len(tokens), error) == (8, None)
    assert "sent None" in str(live.record.failures[0])


@pytest.mark.parametrize("what", ["ahead", "read"])
@pytest.mark.parametrize("told", [ValueError("lost count"), "many"])
def test_an_endpoint_that_cannot_report_its_progress_answers_and_is_charged(what, told):
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
def test_an_endpoint_that_cannot_count_answers_all_the_same(told):
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


def test_a_prompt_over_one_context_goes_to_the_other_endpoint_and_over_both_is_an_error_that_names_them():
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
