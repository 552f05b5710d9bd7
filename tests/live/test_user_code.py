"""Functions, rules and endpoints of a user's own: a mistake in one is named, and loses no answer."""

import asyncio
import json

import numpy as np
import pytest

import disco_core as dc
from disco_core.endpoints.base import Endpoint, Generation, Token
from disco_core.migration import Decision
from tests.helpers.clock import run
from tests.helpers.streams import collect


class Says(Endpoint):
    """Says these tokens, one each 10 ms; `ended_at`: the index of the last one, if the generation knows it then."""

    continues = True

    def __init__(self, name, *tokens, ended_at=None, vocabulary=""):
        self.name, self.said, self.ended_at, self.vocabulary = name, tokens, ended_at, vocabulary

    def generate(self, prefix):
        generation = Generation(self.tokens(prefix, lambda: setattr(generation, "ended", True)))
        return generation

    async def tokens(self, prefix, end):
        for index in range(len(prefix.generated), len(self.said)):
            await asyncio.sleep(0.01)
            if index == self.ended_at:
                end()
            said = self.said[index]
            yield said if isinstance(said, Token) else Token(index, said)


class At(dc.Rule):
    """Hands over after so many tokens."""

    target = dc.End.SERVER

    def __init__(self, at=1, **functions):
        self.at = at
        for name, function in functions.items():
            setattr(self, name, function)

    def decide(self, state):
        return dc.HAND_OVER if len(state.record.tokens) >= self.at else dc.STAY


def answered(rule=None, device=None, server=None, prompt="Why?", **options):
    device = device or Says("device", "a", "b", "c")
    server = server or Says("server", "x", "y", "z", "w")
    options = {"plan": dc.plan_device_only()} | options
    live = dc.stream(prompt, server=server, device=device, rule=rule, **options)
    tokens, error = run(collect(live))
    assert error is None
    return "".join(token.text for token in tokens), live.record


class Broken(At):
    def __init__(self, result):
        super().__init__()
        self.result = result

    def decide(self, state):
        return self.result() if callable(self.result) else self.result


@pytest.mark.parametrize("result", [None, True, "stay", Decision, dc.HAND_OVER.action, lambda: 1 / 0])
def test_a_rule_that_decides_nothing_stays(result):
    text, record = answered(Broken(result), wait=False)
    assert (text, record.handovers, record.failures) == ("abc", [], [])
    assert [one.partition(":")[0] for one in record.warnings] == ["the rule failed"]


@pytest.mark.parametrize("due", [None, "now", float("nan"), float("inf"), -1.0])
def test_a_pace_that_is_no_time_is_the_reading_rate(due):
    class Paces(At):
        def due_s(self, state, index, source):
            return due

    text, record = answered(Paces(at=9))
    assert text == "abc"
    assert [token.due_s - record.ttft_s for token in record.tokens] == pytest.approx([0, 1 / 4.8, 2 / 4.8])
    assert any("the rule failed" in one for one in record.warnings)


@pytest.mark.parametrize("deadline", [lambda n: None, lambda n: "3", lambda: 1, lambda n: float("nan"), lambda n: -1])
def test_a_deadline_that_is_no_time_is_none(deadline):
    text, record = answered(first_token_s=deadline, wait=False)
    assert (text, record.started) == ("abc", [False, True])
    assert any("no deadline" in one for one in record.warnings)


def test_what_fails_while_it_is_told_of_reasoning_is_no_failure_of_the_endpoint():
    device = Says("device", Token(0, "hm", reasoning=True), "b")
    device.said = (Token(0, "hm", reasoning=True), Token(0, "a"), Token(1, "b"))
    text, record = answered(device=device, on_reasoning=lambda text, end: 1 / 0, wait=False)
    assert (text, record.failures, record.reasoning) == ("ab", [], [0, 1])
    assert record.warnings == ["on_reasoning failed: ZeroDivisionError: division by zero"]


async def tell(text, end):
    pass


@pytest.mark.parametrize("bad", [5, "print", tell])
def test_what_is_no_function_of_reasoning_is_refused_at_once(bad):
    with pytest.raises(dc.InputError, match="on_reasoning"):
        answered(on_reasoning=bad)


@pytest.mark.parametrize("target", ["server", 7, True])
def test_a_target_that_is_no_endpoint_is_refused_at_once(target):
    with pytest.raises(dc.InputError, match="target"):
        answered(At(target=target))


def test_an_endpoint_that_cannot_generate_is_refused_at_once():
    with pytest.raises(dc.InputError, match="which has no generate"):
        answered(server=Endpoint())


@pytest.mark.parametrize("template", [None, "", 7, [{"role": "user"}]])
def test_a_chat_template_that_gives_no_prompt_is_no_traceback(template):
    device = Says("device", "a", "b", "c")
    device.apply_chat_template = lambda prompt: template
    text, _ = answered(device=device, prompt=[{"role": "user", "content": "Why?"}], wait=False)
    assert text == "abc"


def test_a_record_is_ready_for_json_whatever_numbers_a_user_s_code_gives():
    device = Says("device", Token(0, "a", np.int64(4)), Token(1, "b", np.int64(5)))
    _, record = answered(device=device, wait=False)
    record.ttft_s = float("nan")
    plain = json.loads(json.dumps(record.to_dict(), allow_nan=False))
    assert [token["id"] for token in plain["tokens"]] == [4, 5]
    assert plain["ttft_s"] is None


@pytest.mark.parametrize(("at", "text"), [(1, "ayzw"), (2, "abzw"), (3, "abc")])
def test_an_answer_whose_end_is_known_is_not_handed_over(at, text):
    """The endpoint knows with its last token that no other comes, as a server that says so in the same event."""
    device = Says("device", "a", "b", "c", ended_at=2)
    assert answered(At(at), device=device, wait=False)[0] == text


def test_text_that_ends_in_white_space_is_handed_over_a_token_later_and_the_record_says_why():
    device = Says("device", "a ", "b", "c")
    text, record = answered(At(1), device=device, wait=False)
    assert (text, record.migrated_at) == ("a bzw", 2)
    assert record.refusals == ["server is not handed text that ends in white space, which it may repeat"]
