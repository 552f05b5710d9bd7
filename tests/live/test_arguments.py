"""What a user of `stream` may get wrong is named before anything starts."""

import numpy as np
import pytest

import disco_core as dc
from disco_core import stream
from tests.helpers.clock import run
from tests.helpers.replay import ReplayEndpoint
from tests.helpers.streams import collect, ends


def test_ids_are_no_prompt_for_two_vocabularies():
    server, device = ends(0.1, 9)
    server.vocabulary = "other"
    with pytest.raises(dc.InputError, match="different vocabularies"):
        stream([1, 2], plan=dc.plan_server_only(), server=server, device=device)


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

    with pytest.raises(
        dc.InputError, match=r"which has no continues, prefix_cache, remote, count, apply_chat_template$"
    ):
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
