"""P/D-Device on replayed endpoints under a virtual clock: no token is lost, the pace is even and within its limit."""

import asyncio
import dataclasses

import numpy as np
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

import disco_core as dc
from disco_core.systems.compression import kept_tokens
from disco_core.systems.pd_device.take_over import TakeOver, plan_together
from disco_core.systems.pd_device.timing import choose, simulate_pd
from tests.helpers.clock import run
from tests.helpers.replay import Failure, ReplayEndpoint
from tests.helpers.streams import collect, failures


class Mute(ReplayEndpoint):
    """A device that does not tell what it has read."""

    def read(self):
        return None


class Slot(ReplayEndpoint):
    """A cloud that notes when it was last let go."""

    async def tokens(self, prefix):
        try:
            async for token in super().tokens(prefix):
                yield token
        finally:
            self.freed_s = asyncio.get_running_loop().time()


def device_of(profile, length, kind=ReplayEndpoint, **options):
    return kind(
        lambda n: float(profile.ttft(n)),
        [1 / profile.decode_rate],
        length,
        name="device",
        prefix_cache=True,
        **options,
    )


def answer(rule, server, device, l=200, length=100, plan=None, start_s=None):
    plan = plan or plan_together(refined=rule.refine is not None)
    live = dc.stream([0] * l, plan=plan, server=server, device=device, rule=rule, max_tokens=length)

    async def begun():
        await asyncio.sleep(start_s or 0.0)
        return await collect(live)

    tokens, error = run(begun())
    return live.record, tokens, error


def gaps(tokens):
    return np.diff([token.released_s for token in tokens])


PHONE = dc.DeviceProfile(100.0, 25.0)
RULE = TakeOver(PHONE, cloud_token_s=0.01, tpot_limit_s=0.1, resume_s=0.5)


@pytest.mark.parametrize("kind", [ReplayEndpoint, Mute])
def test_the_cloud_sends_what_the_device_needs_and_the_reader_sees_an_even_stream(kind):
    server, device = ReplayEndpoint(0.5, [0.01], 100, name="server"), device_of(PHONE, 100, kind)
    record, tokens, error = answer(RULE, server, device)
    assert error is None
    assert [token.id for token in tokens] == list(range(100))
    # ready after 2 s and n more tokens, from 0.5 s on at 0.1 s a token: 1.5 + n / 100 <= n / 10
    assert record.migrated_at == 17
    assert [token.source for token in tokens] == [dc.End.SERVER] * 17 + [dc.End.DEVICE] * 83
    assert gaps(record.tokens[:18]) == pytest.approx(1.67 / 17)
    assert gaps(record.tokens[17:]) == pytest.approx(0.04)
    assert record.prefill == [200, 217] == [server.prefilled, device.prefilled]
    assert record.decode == [17, 83]
    assert record.handovers[0].time_s == pytest.approx(0.66)  # since when the slot is free


def test_the_refined_prompt_is_prefilled_from_the_first_token_on():
    rule = TakeOver(PHONE, 0.01, 0.1, 0.5, refine=lambda prompt: prompt[:50])
    server, device = ReplayEndpoint(0.5, [0.01], 100, name="server"), device_of(PHONE, 100)
    record, tokens, error = answer(rule, server, device)
    assert error is None
    assert [token.id for token in tokens] == list(range(100))
    assert record.migrated_at == 6  # 0.5 + n / 100 <= n / 10
    assert gaps(record.tokens[:7]) == pytest.approx(0.56 / 6)
    assert record.prefill == [200, 56]
    assert [len(seen.prompt) for seen in device.seen] == [50, 50]


def late(kind, from_token=0, rule=RULE):
    """An answer whose device reads half as fast as its profile says, from the beginning or from a token on."""

    def reads(n):
        return min(n, from_token) / 100 + max(0, n - from_token) / 50

    server = ReplayEndpoint(0.5, [0.01], 200, name="server")
    device = kind(reads, [0.04], 200, name="device", prefix_cache=True)
    record, tokens, error = answer(rule, server, device, length=200)
    assert error is None
    assert [token.id for token in tokens] == list(range(200))
    assert tokens[-1].source is dc.End.DEVICE
    assert record.prefill == [server.prefilled, device.prefilled]
    return record, server


def test_the_cloud_sends_more_to_a_device_that_is_slower_than_it_was_taken_for():
    record, _ = late(ReplayEndpoint)
    assert record.migrated_at > 40  # ready after 4 s and n / 50
    assert max(gaps(record.tokens)) <= 0.1 + 1e-9


def test_a_device_that_slows_down_makes_the_cloud_send_more_before_the_pace_breaks():
    for spare, at in ((0.0, 17), (0.5, 30)):
        record, server = late(ReplayEndpoint, from_token=100, rule=dataclasses.replace(RULE, spare=spare))
        assert record.migrated_at == at  # all was well then
        assert len(server.seen) >= 2
        assert record.handovers[1].reason == "the target was late"
        assert max(gaps(record.tokens)) < 0.1 + RULE.resume_s / 2  # not in full: it is always slower than it has been


def test_a_late_device_that_reports_nothing_is_noticed_when_it_is_overdue():
    record, server = late(Mute)
    assert record.migrated_at == 17
    assert len(server.seen) == 2
    assert record.handovers[1].reason == "the target was late"
    assert record.tokens[17].released_s - record.tokens[16].released_s < 0.1 + RULE.resume_s + 0.1


def test_an_answer_that_ends_before_the_take_over_is_the_clouds():
    server, device = ReplayEndpoint(0.5, [0.01], 9, name="server"), device_of(PHONE, 9)
    record, tokens, error = answer(RULE, server, device, length=9)
    assert (error, len(tokens), record.decode, record.handovers) == (None, 9, [9, 0], [])
    assert (server.running, device.running) == (0, 0)


def test_a_device_that_dies_while_it_reads_leaves_the_answer_to_the_cloud():
    server = ReplayEndpoint(0.5, [0.1], 50, name="server")
    device = device_of(PHONE, 50, fail=Failure.DIE_BEFORE_FIRST)
    record, tokens, error = answer(RULE, server, device, length=50)
    assert error is None
    assert [token.id for token in tokens] == list(range(50))
    assert record.decode[1] == 0
    assert str(record.failures[0]).startswith("device: ")


def test_a_prompt_that_fits_the_device_only_when_refined():
    for refine, by_device in ((None, 0), (lambda prompt: prompt[:20], 37)):
        server = ReplayEndpoint(0.5, [0.01], 40, name="server")
        device = device_of(PHONE, 40, context=70)
        record, tokens, error = answer(TakeOver(PHONE, 0.01, 0.1, 0.5, refine), server, device, l=100, length=40)
        assert error is None
        assert [token.id for token in tokens] == list(range(40))
        assert record.decode[1] == by_device


def test_limits_that_cannot_be_kept_leave_the_answer_to_the_cloud():
    for rule in (TakeOver(PHONE, 0.01, 0.03, 0.5), TakeOver(PHONE, 0.2, 0.1, 0.5)):
        server, device = ReplayEndpoint(0.5, [rule.cloud_token_s], 60, name="server"), device_of(PHONE, 60)
        record, tokens, error = answer(rule, server, device, length=60)
        assert (error, len(tokens), record.decode) == (None, 60, [60, 0])


@pytest.mark.parametrize(
    ("refine", "word"),
    [
        (lambda _: 1 / 0, "ZeroDivisionError"),
        (lambda _: [], "must not be empty"),
        (lambda _: None, "got None"),
        (lambda prompt: [*prompt] * 9, "tokens of context"),
    ],
)
def test_a_refinement_that_fails_leaves_the_answer_to_the_cloud(refine, word):
    server, device = ReplayEndpoint(0.5, [0.01], 60, name="server"), device_of(PHONE, 60, context=1000)
    record, tokens, error = answer(dataclasses.replace(RULE, refine=refine), server, device, length=60)
    assert (error, len(tokens), record.decode) == (None, 60, [60, 0])
    assert record.prefill == [200, 0]
    assert word in record.refusals[0]


@pytest.mark.parametrize("lacking", ["prefix_cache", "continues"])
def test_an_endpoint_that_cannot_go_on_from_what_it_has_read_is_refused(lacking):
    server, device = ReplayEndpoint(0.5, [0.01], 60, name="server"), device_of(PHONE, 60)
    setattr(device, lacking, False)
    record, tokens, error = answer(RULE, server, device, length=60)
    assert (error, len(tokens), record.decode) == (None, 60, [60, 0])
    assert len(record.refusals) == 1


def test_a_device_that_was_never_started_has_prefilled_nothing():
    server, device = ReplayEndpoint(0.5, [0.01], 100, name="server"), device_of(PHONE, 100)
    record, _, error = answer(RULE, server, device, plan=dc.plan_server_only())
    assert error is None
    assert max(gaps(record.tokens)) <= 0.1 + 1e-9


def test_a_device_that_is_late_within_the_spare_time_needs_no_more_of_the_cloud():
    for kind in (ReplayEndpoint, Mute):
        server = ReplayEndpoint(0.5, [0.01], 100, name="server")
        device = kind(lambda n: n / 90, [0.04], 100, name="device", prefix_cache=True)
        record, _, error = answer(dataclasses.replace(RULE, spare=0.15, resume_s=2.0), server, device)
        assert error is None
        assert len(server.seen) == 1
        assert max(gaps(record.tokens)) <= 0.1 + 1e-9


def test_a_rule_that_paces_needs_a_reader_who_waits():
    server, device = ReplayEndpoint(0.5, [0.01], 60, name="server"), device_of(PHONE, 60)
    with pytest.raises(dc.InputError, match=r"^wait must be True"):
        dc.stream("hi", plan=plan_together(), server=server, device=device, rule=RULE, wait=False)


rates = st.sampled_from([20.0, 50.0, 100.0, 400.0])


@settings(max_examples=300)
@given(
    st.integers(1, 300),
    st.integers(1, 120),
    st.sampled_from([0.1, 0.3, 0.9, 2.0]),
    st.sampled_from([0.005, 0.02, 0.08]),
    rates,
    rates,
    st.sampled_from([0.05, 0.1, 0.2]),
    st.booleans(),
    failures,
    failures,
    st.integers(0, 120),
    st.integers(0, 120),
    st.sampled_from([0.0, 12345.678]),
    st.booleans(),
)
def test_nothing_is_lost_repeated_or_reordered(
    l, length, first, gap, planned, true, limit, refined, server_fails, device_fails, at, at2, start_s, prefix_cache
):
    """Whatever fails, and however wrong the device's profile is."""
    rule = TakeOver(
        dc.DeviceProfile(planned, 25.0), gap, limit, 0.3, (lambda p: p[: len(p) // 2 + 1]) if refined else None
    )
    server = ReplayEndpoint(first, [gap], length, name="server", fail=server_fails, at=at, cancel_s=0.5)
    device = device_of(dc.DeviceProfile(true, 25.0), length, fail=device_fails, at=at2, cancel_s=0.5)
    device.prefix_cache = prefix_cache
    record, tokens, error = answer(rule, server, device, l=l, length=length, start_s=start_s)
    assert [token.id for token in tokens] == list(range(len(tokens)))
    assert record.complete == (error is None) == (len(tokens) == length)
    assert (server.running, device.running) == (0, 0)
    assert record.prefill == [server.prefilled, device.prefilled]
    assert record.unconfirmed == [0, 0]
    assert not any("AssertionError" in str(failure) for failure in record.failures)
    times = [(token.generated_s, token.released_s) for token in record.tokens]
    assert [at for _, at in times] == sorted(at for _, at in times)
    assert all(made <= released for made, released in times)
    if server_fails is None and device_fails is None:
        assert error is None
    event("taken over" if record.migrated_at else "stayed")
    event("asked again" if len(record.handovers) > 1 else "once")


@settings(max_examples=200)
@given(
    st.integers(1, 400),
    st.integers(2, 200),
    st.sampled_from([0.1, 0.3, 0.9, 2.0]),
    st.sampled_from([0.005, 0.02]),
    st.sampled_from([50.0, 100.0, 400.0]),
    st.sampled_from([0.06, 0.1, 0.2]),
)
def test_the_reader_never_waits_longer_than_the_limit(l, length, first, gap, rate, limit):
    profile = dc.DeviceProfile(rate, 25.0)
    server, device = ReplayEndpoint(first, [gap], length, name="server"), device_of(profile, length)
    record, _, error = answer(TakeOver(profile, gap, limit, 0.3), server, device, l=l, length=length)
    assert error is None
    assert max(gaps(record.tokens)) <= limit + 1e-9
    assert len(record.handovers) <= 1
    event("taken over" if record.migrated_at else "stayed")


@settings(max_examples=200)
@given(
    st.integers(1, 400),
    st.integers(2, 150),
    st.sampled_from([0.1, 0.3, 0.9, 2.0]),
    st.sampled_from([0.005, 0.02, 0.05]),
    st.sampled_from([25.0, 50.0, 100.0, 400.0]),
    st.sampled_from([0.055, 0.06, 0.1, 0.2]),
    st.sampled_from([1.0, 0.5]),
    st.sampled_from([ReplayEndpoint, Mute]),
)
def test_live_and_simulated_agree(l, length, first, gap, rate, limit, rho, kind):
    """The same k out of the closed form and out of the rule, and with it every time, charge and token."""
    profile = dc.DeviceProfile(rate, 25.0, 0.0625)
    chosen = choose([first], gap, profile, [l], 10**6, limit, rho, loss=lambda _: 0.0)
    behind_s = profile.ttft(kept_tokens(l, rho)) - (rho == 1) * first
    least = behind_s / (limit - 1 / rate) if limit > 1 / rate else 0.5
    assume(not 0 <= behind_s < 1e-9 and abs(least - round(least)) > 1e-9)  # where rounding decides
    one = simulate_pd(dc.Workload([0.0], [l], [length]), chosen, [first], gap, profile)
    rule = TakeOver(profile, gap, limit, 0.3, None if rho == 1 else lambda prompt: prompt[: kept_tokens(l, rho)])
    server, device = Slot(first, [gap], length, name="server"), device_of(profile, length, kind)
    record, _, error = answer(rule, server, device, l=l, length=length)
    assert error is None
    event("taken over" if one.taken_over[0] else "not")
    assert record.decode == [one.cloud_tokens[0], one.device_tokens[0]]
    assert record.ttft_s == pytest.approx(one.ttft_s[0])
    assert bool(record.migrated_at) == one.taken_over[0]
    if chosen.feasible[0]:  # where not, no device is started at all, which the rule learns only with the tokens
        assert record.prefill == [one.ledger.server_prefill[0], one.ledger.device_prefill[0]]
    if not one.taken_over[0] and one.device_tokens[0]:  # it answered first: the cloud is let go at once
        assert server.freed_s == pytest.approx(one.cloud_s[0])
    if one.taken_over[0]:  # once it knows that no device will, the machine lets the tokens out as it likes
        assert max(gaps(record.tokens)) == pytest.approx(one.tpot_max_s[0], rel=1e-6)
        assert record.tokens[-1].released_s == pytest.approx(one.finish_s[0], rel=1e-6)
        assert record.handovers[0].time_s == pytest.approx(one.cloud_s[0])
