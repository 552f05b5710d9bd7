"""What a hand-over gives to its target (prompt, ids or text, tokens left), and what becomes of a race's loser."""

import numpy as np
import pytest

import disco_core as dc
from disco_core import stream
from disco_core.endpoints.base import Token
from tests.helpers.clock import run
from tests.helpers.replay import Failure, ReplayEndpoint
from tests.helpers.streams import DEVICE, SERVER_RATE, collect, ends


@pytest.mark.parametrize("vocabulary", ["integers", "other"])
def test_ids_move_between_equal_vocabularies_only(vocabulary):
    cost = dc.CostModel(0, 1e-7, 1e-6, 1e-6)
    rule = dc.MigrationRule(cost, dc.LengthDistribution([200], [1]), dc.TTFTDistribution([0.3]), DEVICE)
    server, device = ends(0.3, 100)
    server.vocabulary = vocabulary
    live = stream("0" * 20, plan=dc.plan_device_only(), server=server, device=device, rule=rule, max_tokens=100)
    tokens, error = run(collect(live))
    assert error is None
    assert "".join(token.text for token in tokens) == "".join(f" {i}" for i in range(100))
    at = live.record.migrated_at
    assert at > 0
    moved = server.seen[0].generated
    assert [token.text for token in moved] == [token.text for token in tokens[:at]]
    assert [token.id for token in moved] == (list(range(at)) if vocabulary == "integers" else [None] * at)
    text = "".join(token.text for token in moved)  # in which the replayed endpoint counts every character
    assert live.record.prefill == [20 + (at if vocabulary == "integers" else len(text)), 20]


@pytest.mark.parametrize("keeps", [False, True])
def test_a_loser_is_cancelled_or_keeps_prefilling(keeps):
    cost, distribution = dc.CostModel(1, 2, 1, 1), dc.TTFTDistribution([0.3])  # moving never pays
    rule = dc.MigrationRule(cost, dc.LengthDistribution([9], [1]), distribution, DEVICE, finish_loser_prefill=keeps)
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


def test_the_rule_builds_the_prompt_of_each_endpoint():
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


def test_text_that_is_prefilled_again_has_one_bos():
    class Opened(ReplayEndpoint):
        def count(self, prompt):
            return 1 + len(prompt)

    server = ReplayEndpoint(0.25, [0.125], 8, fail=Failure.DIE, at=3, vocabulary="other")
    device = Opened(0.25, [0.125], 8)
    live = stream("four", plan=dc.plan_server_only(), server=server, device=device, max_tokens=8, wait=False)
    assert run(collect(live))[1] is None
    assert live.record.prefill == [4, 1 + len("four 0 1 2")]


def test_each_endpoint_counts_its_prompt_once():
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


class Words(ReplayEndpoint):
    """Tokens with these texts."""

    texts = ("The ", "sea ", "\n", "is", " salty", ".", " So", " it")

    async def tokens(self, prefix):
        async for token in super().tokens(prefix):
            yield Token(token.index, self.texts[token.index], token.id)


class AtOnce(dc.Rule):
    """Hands over at the first token that allows it."""

    target = dc.End.SERVER

    def decide(self, state):
        return dc.HAND_OVER


@pytest.mark.parametrize(("vocabulary", "at"), [("integers", 1), ("other", 4), ("", 4)])
def test_no_text_is_cut_right_after_white_space(vocabulary, at):
    """Servers strip or repeat it; ids are not touched by that."""
    server = Words(0.1, [0.01], 8, name="server", vocabulary=vocabulary)
    device = Words(0.1, [0.01], 8, name="device")
    live = stream(
        "hi", plan=dc.plan_device_only(), server=server, device=device, rule=AtOnce(), max_tokens=8, wait=False
    )
    tokens, error = run(collect(live))
    assert error is None
    assert live.record.migrated_at == at
    assert "".join(token.text for token in tokens) == "".join(Words.texts)


def test_where_a_failure_cuts_it_there_the_record_says_so():
    server = Words(0.1, [0.01], 8, name="server", vocabulary="other")
    device = Words(0.1, [0.01], 8, fail=Failure.DIE, at=2, name="device")
    live = stream("hi", plan=dc.plan_device_only(), server=server, device=device, max_tokens=8, wait=False)
    assert run(collect(live))[1] is None
    assert live.record.warnings == ["server continues after white space, which it may repeat"]


def test_a_target_that_refuses_at_once_is_no_migration():
    server = ReplayEndpoint(0.1, [0.01], 8, fail=Failure.REFUSE, name="server")
    device = ReplayEndpoint(0.1, [0.01], 8, name="device")
    options = {"server": server, "device": device, "rule": AtOnce(), "max_tokens": 8, "wait": False}
    live = stream("hi", plan=dc.plan_device_only(), **options)
    tokens, error = run(collect(live))
    assert (len(tokens), error, live.record.migrated_at) == (8, None, 0)
    assert [one.target for one in live.record.handovers] == [dc.End.SERVER, dc.End.DEVICE]
