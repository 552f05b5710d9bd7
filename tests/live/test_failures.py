"""An endpoint fails, stalls or is written wrongly: the other one goes on, and no token is lost or repeated."""

import asyncio
import json

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import disco_core as dc
from artifact.measure.network_delay import LastHop
from disco_core import stream
from disco_core.endpoints.base import Generation, Token
from disco_core.migration import HAND_OVER, PREFILL, RECALL, Rule
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
    # each endpoint counted for itself; not charged is one token of a loser: the one that tells that its prefill has
    # ended, where the rule lets it finish that
    uncharged = [server.made - record.decode[0], device.made - record.decode[1]]
    assert uncharged in ([0, 0], [0, 1], [1, 0])
    if uncharged != [0, 0]:
        assert record.started == [True, True]
        assert uncharged[record.winner] == 0
        assert rule.finish_loser_prefill
    assert not any("AssertionError" in str(failure) for failure in record.failures)  # the ends check their prefixes
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
    assert str(live.record.failures[0]) == "server: sent no token for 2 s"


def test_an_endpoint_that_never_answers_is_named_within_its_deadline():
    def silent(name):
        return Hung(1e9, [1.0], 8, cancel_s=1e9, name=name)

    both = dc.plan_stochastic(1.0, dc.Constraint.DEVICE, both=True)
    for plan, needed_s in ((dc.plan_server_only(), 4.0), (both, 2.0)):
        rng = np.random.default_rng(0)
        live = stream("hi", plan=plan, server=silent("there"), device=silent("here"), stall_s=2, confirm_s=5, rng=rng)
        tokens, error, ended = run(until_the_end(live))
        assert tokens == []
        told = "there: sent no token for 2 s; here: sent no token for 2 s"
        assert str(error) == f"neither endpoint could continue after 0 tokens: {told}"
        assert [type(failure) for failure in live.record.failures] == [dc.StalledError] * 2
        assert live.record.error is error
        assert ended == needed_s + 5.0


def test_the_same_token_again_and_again_is_a_stall():
    class Stuck(ReplayEndpoint):
        async def tokens(self, prefix):
            async for token in super().tokens(prefix):
                yield token
                while token.index == 2:
                    await asyncio.sleep(0.5)
                    yield token

    server, device = Stuck(0.5, [0.125], 8, name="server"), ReplayEndpoint(0.25, [0.0625], 8, name="device")
    live = stream("hi", plan=dc.plan_server_only(), server=server, device=device, max_tokens=8, wait=False, stall_s=3)
    tokens, error = run(collect(live))
    assert error is None
    assert [token.id for token in tokens] == list(range(8))
    assert "sent no token for 3 s" in str(live.record.failures[0])


@pytest.mark.parametrize("delayed", [False, True])
def test_an_endpoint_that_breaks_while_it_stops_is_unconfirmed_and_the_answer_complete(delayed):
    class Broken(ReplayEndpoint):
        async def tokens(self, prefix):
            try:
                async for token in super().tokens(prefix):
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
        async def tokens(self, prefix):
            async for token in super().tokens(prefix):
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
    """Checks before it gives a generation."""

    def generate(self, prefix):
        raise dc.RefusedError(self.name, "no credit left")


class NoGeneration(ReplayEndpoint):
    def generate(self, prefix):
        return [Token(0, "a")]


class NoAsync(ReplayEndpoint):
    async def generate(self, prefix):
        return [Token(0, "a")]


class Says(ReplayEndpoint):
    """Something else than tokens."""

    said = None

    async def tokens(self, prefix):
        yield Token(0, "a")
        yield self.said


def saying(what):
    return type("Says", (Says,), {"said": what})


@pytest.mark.parametrize(
    ("kind", "first", "word"),
    [
        (Refusing, 0, "no credit left"),
        (NoGeneration, 0, "generate must give a Generation of tokens, got a list"),
        (NoAsync, 0, "generate must give a Generation of tokens, got a coroutine"),
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


@pytest.mark.parametrize("what", ["undelivered", "prefilled"])
@pytest.mark.parametrize("told", [ValueError("lost count"), "many", -1])
def test_an_endpoint_that_cannot_tell_how_far_it_is_answers_and_is_charged(what, told):
    def tell(_):
        if isinstance(told, Exception):
            raise told
        return told

    class Unsure(Generation):
        undelivered = property(tell if what == "undelivered" else lambda _: 0)
        prefilled = property(tell if what == "prefilled" else lambda _: None)

    class Server(ReplayEndpoint):
        def generate(self, prefix):
            return Unsure(self.tokens(prefix))

    server, device = Server(0.25, [0.125], 8, name="server"), ReplayEndpoint(0.25, [0.125], 8, name="device")
    cost = dc.CostModel(0.0, 0.0, 0.0, 1e-6)
    rule = dc.MigrationRule(cost, dc.LengthDistribution([60], [1]), dc.TTFTDistribution([0.1]), DEVICE)
    live = stream("hi", plan=dc.plan_server_only(), server=server, device=device, rule=rule, max_tokens=8, wait=False)
    tokens, error = run(collect(live))
    assert (len(tokens), error, live.record.failures) == (8, None, [])
    assert (live.record.decode, live.record.unconfirmed) == ([8, 0], [0, 0])


class Counts(ReplayEndpoint):
    """Counts as it is told, from the second time on."""

    told, asked = None, 0

    def count(self, prompt):
        self.asked += 1
        if self.asked == 1:
            return super().count(prompt)
        if isinstance(self.told, Exception):
            raise self.told
        return self.told


@pytest.mark.parametrize("told", [ConnectionError("the tokenizer is down"), None, -1, 0, 1.5, True])
def test_an_endpoint_in_this_process_that_cannot_count_is_named_before_anything_starts(told):
    server = Counts(0.5, [0.125], 8, name="mine")
    server.told, server.asked = told, 1
    with pytest.raises(dc.InputError, match=r"^mine: count (failed: ConnectionError|must be a whole number)"):
        stream("a" * 40, plan=dc.plan_server_only(), server=server, device=server, max_tokens=8)


def test_a_count_that_fails_in_mid_answer_is_an_estimate_and_a_warning():
    """The target gets the answer as text, and has to count that."""
    server, device = Counts(0.25, [0.125], 8, name="server", vocabulary="other"), ReplayEndpoint(0.25, [0.125], 8)
    server.told = ConnectionError("the tokenizer is down")
    device.fail, device.at = Failure.DIE, 3
    live = stream("hi", plan=dc.plan_device_only(), server=server, device=device, max_tokens=8, wait=False)
    tokens, error = run(collect(live))
    assert (len(tokens), error) == (8, None)
    assert live.record.warnings == ["server cannot count tokens: ConnectionError: the tokenizer is down"]
    assert live.record.prefill[0] == 2 + 1  # "hi", and what an estimate says of " 0 1 2" behind it


class Unspeakable(Exception):
    """An exception whose text cannot be had."""

    def __str__(self):
        raise RuntimeError


def test_an_exception_without_a_text_is_told_at_once_by_its_type():
    class Raising(ReplayEndpoint):
        async def tokens(self, prefix):
            yield Token(0, " 0", 0)
            raise Unspeakable

    server, device = Raising(0.5, [0.125], 8, name="server"), ReplayEndpoint(0.25, [0.0625], 8)
    live = stream("hi", plan=dc.plan_server_only(), server=server, device=device, max_tokens=8, wait=False)
    tokens, error, ended = run(until_the_end(live))
    assert (len(tokens), error) == (8, None)
    assert str(live.record.failures[0]) == "server: Unspeakable"
    assert ended < 1.0


def empty(**options):
    """An endpoint that ends at once, without a token."""

    class Empty(ReplayEndpoint):
        async def tokens(self, prefix):
            await asyncio.sleep(self.ttft_s)
            return
            yield

    return Empty(0.1, [0.125], 8, **options)


@pytest.mark.parametrize("plan", [dc.plan_server_only(), dc.plan_stochastic(1.0, dc.Constraint.DEVICE, both=True)])
def test_an_endpoint_that_ends_without_a_token_has_lost(plan):
    server, device = empty(name="server"), ReplayEndpoint(0.25, [0.0625], 8)
    rng = np.random.default_rng(0)
    live = stream("hi", plan=plan, server=server, device=device, max_tokens=8, wait=False, rng=rng)
    tokens, error = run(collect(live))
    assert (len(tokens), error, live.record.winner, live.record.complete) == (8, None, dc.End.DEVICE, True)
    assert str(live.record.failures[0]) == "server: it ended without a token"


def test_only_if_every_endpoint_is_empty_is_the_answer_empty():
    live = stream("hi", plan=dc.plan_server_only(), server=empty(name="a"), device=empty(name="b"), max_tokens=8)
    assert run(collect(live)) == ([], None)
    assert (live.record.complete, live.record.winner, live.record.ttft_s) == (True, None, None)
    dead = ReplayEndpoint(0.1, [0.1], 8, fail=Failure.DIE_BEFORE_FIRST, name="dead")
    live = stream("hi", plan=dc.plan_server_only(), server=empty(name="a"), device=dead, max_tokens=8)
    tokens, error = run(collect(live))
    assert tokens == []
    assert isinstance(error, dc.StreamError)
    assert not live.record.complete


@pytest.mark.parametrize(
    ("first", "numbers", "word"),
    [(0, [0, 0, 0, 0], "sent token 0 where 1 was next"), (3, [0, 1, 2, 3], "sent token 0 where 3 was next")],
)
def test_tokens_with_wrong_numbers_are_no_repetition(first, numbers, word):
    """A token that was there before is dropped only if text and id are the same."""

    class Misnumbers(ReplayEndpoint):
        async def tokens(self, prefix):
            for number, text in zip(numbers, ("The ", "sea ", "is ", "salty"), strict=True):
                yield Token(number, text)

    wrong, right = Misnumbers(0.1, [0.1], 8, name="wrong"), ReplayEndpoint(0.25, [0.0625], 8)
    if first:
        right.fail, right.at = Failure.DIE, first
    live = stream(
        "hi",
        plan=dc.plan_server_only(),
        server=right if first else wrong,
        device=wrong if first else right,
        max_tokens=8,
        wait=False,
    )
    tokens, error = run(collect(live))
    assert word in str(live.record.failures[-1])
    assert (error is None) == (first == 0)
    assert [token.index for token in tokens] == list(range(3 if first else 8))


def test_a_loop_is_not_held_up_by_repetitions():
    class Repeats(ReplayEndpoint):
        async def tokens(self, prefix):
            while True:
                yield Token(0, " 0", 0)

    server, device = Repeats(0.1, [0.1], 8, name="server"), ReplayEndpoint(0.25, [0.0625], 8)
    live = stream("hi", plan=dc.plan_server_only(), server=server, device=device, max_tokens=8, wait=False)
    tokens, error = run(collect(live))
    assert (len(tokens), error) == (8, None)
    assert "sent token 0 where 1 was next" in str(live.record.failures[0])


class PrefillsEarly(Rule):
    """The device prefills from the first token on, and takes over at the third."""

    target = dc.End.DEVICE

    def decide(self, state):
        return HAND_OVER if len(state.record.tokens) == 3 else PREFILL


def test_a_target_that_fails_as_it_is_to_take_over_leaves_the_answer_to_its_source():
    """The source sends a burst, the rule moves, and the target's prefill fails in the same pass of the loop."""
    server = ReplayEndpoint(0.25, [0.0], 8, name="server")
    device = ReplayEndpoint(0.0, [0.1], 8, fail=Failure.DIE_BEFORE_FIRST, name="device")
    live = stream(
        "hi", plan=dc.plan_server_only(), server=server, device=device, rule=PrefillsEarly(), max_tokens=8, wait=False
    )
    tokens, error = run(collect(live))
    assert (len(tokens), error) == (8, None)
    assert {token.source for token in tokens} == {dc.End.SERVER}
    assert [failure.endpoint for failure in live.record.failures] == ["device"]


@pytest.mark.parametrize("deadline", [0.5, lambda tokens: 0.25 * tokens])
def test_after_a_first_token_deadline_the_other_endpoint_is_asked(deadline):
    server, device = ReplayEndpoint(5.0, [0.125], 8, name="server"), ReplayEndpoint(0.25, [0.0625], 8)
    live = stream(
        "hi",
        plan=dc.plan_server_only(),
        server=server,
        device=device,
        max_tokens=8,
        wait=False,
        first_token_s=deadline,
    )
    tokens, error = run(collect(live))
    record = live.record
    assert (len(tokens), error, record.ttft_s, record.winner) == (8, None, 0.75, dc.End.DEVICE)
    assert (record.started, record.failover_prefill) == ([True, False], [0, 2])
    quick = ReplayEndpoint(0.4, [0.125], 8, name="server")
    live = stream(
        "hi",
        plan=dc.plan_server_only(),
        server=quick,
        device=device,
        max_tokens=8,
        wait=False,
        first_token_s=deadline,
    )
    run(collect(live))
    assert live.record.prefill == [2, 0]


def test_a_start_is_a_failover_s_only_if_the_plan_has_it_later():
    """The server fails at the instant for which the device is planned, or before."""
    plan = dc.DispatchPlan("hedge", [1], np.array([[[0.0]], [[0.5]]]), [[1.0]])
    for fails_s, failover in ((0.5, 0), (0.25, 2)):
        server = ReplayEndpoint(fails_s, [0.125], 8, fail=Failure.DIE_BEFORE_FIRST, name="server")
        device = ReplayEndpoint(0.25, [0.0625], 8, name="device")
        live = stream("hi", plan=plan, server=server, device=device, max_tokens=8, wait=False)
        assert run(collect(live))[1] is None
        assert live.record.failover_prefill == [0, failover]
        assert live.record.started == [True, not failover]


def test_a_recall_is_no_failover():
    """The device starts because the server misses its deadline; what the rule then recalls, no failure caused."""

    class Recalls(Rule):
        target = dc.End.SERVER

        def decide(self, state):
            return RECALL if state.awaited else HAND_OVER

    server = ReplayEndpoint(9.0, [0.125], 8, name="server")
    device = ReplayEndpoint(0.25, [0.0625], 8, name="device")
    both = {"server": server, "device": device}
    live = stream(
        "hi", plan=dc.plan_server_only(), **both, rule=Recalls(), max_tokens=2, wait=False, first_token_s=0.5
    )
    tokens, error = run(collect(live))
    assert (len(tokens), error) == (2, None)
    assert live.record.prefill == [2 + 3, 2 + 3]
    assert live.record.failover_prefill == [0, 2]


class Filtered(ReplayEndpoint):
    async def tokens(self, prefix):
        async for token in super().tokens(prefix):
            if token.index == self.at:
                raise dc.FilteredError(self.name, "content_filter")
            yield token


@pytest.mark.parametrize("at", [0, 3])
def test_past_a_content_filter_no_other_endpoint_goes_on_unless_an_option_says_so(at):
    for after_filter in (False, True):
        server, device = Filtered(0.25, [0.125], 8, name="server", at=at), ReplayEndpoint(0.25, [0.0625], 8)
        live = stream(
            "hi",
            plan=dc.plan_server_only(),
            server=server,
            device=device,
            max_tokens=8,
            wait=False,
            after_filter=after_filter,
        )
        tokens, error = run(collect(live))
        assert len(tokens) == (8 if after_filter else at)
        assert (error is None) is after_filter
        assert live.record.complete is after_filter


class Thinks(ReplayEndpoint):
    """Sends reasoning before its answer."""

    async def tokens(self, prefix):
        for _ in range(16):
            await asyncio.sleep(0.1)
            yield Token(len(prefix.generated), "hm", reasoning=True)
        async for token in super().tokens(prefix):
            yield token


def test_reasoning_is_not_the_answer_and_no_stall_and_is_charged():
    heard = []
    server, device = Thinks(0.1, [0.125], 8, name="server"), ReplayEndpoint(0.25, [0.0625], 8)
    both, rng = dc.plan_stochastic(1.0, dc.Constraint.DEVICE, both=True), np.random.default_rng(0)
    options = {"server": server, "device": device, "max_tokens": 8, "wait": False, "stall_s": 0.5}
    live = stream("hi", plan=both, rng=rng, **options)
    tokens, error = run(collect(live))
    assert (len(tokens), error, live.record.winner, live.record.decode) == (8, None, dc.End.DEVICE, [2, 8])
    live = stream("hi", plan=dc.plan_server_only(), on_reasoning=lambda *piece: heard.append(piece), **options)
    tokens, error = run(collect(live))
    assert (len(tokens), error, live.record.decode, live.record.reasoning) == (8, None, [24, 0], [16, 0])
    assert heard == [("hm", dc.End.SERVER)] * 16
    assert "hm" not in "".join(token.text for token in tokens)


def test_a_record_is_plain_values():
    server, device = ends(0.1, 9, fail=Failure.DIE, at=3)
    live = stream([0] * 6, plan=dc.plan_server_only(), server=server, device=device, max_tokens=9, wait=False)
    run(collect(live))
    plain = json.loads(json.dumps(live.record.to_dict()))
    assert plain["winner"] == "server"
    assert plain["tokens"][0]["source"] == "server"
    assert plain["failures"] == [str(live.record.failures[0])]


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
