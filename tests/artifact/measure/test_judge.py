"""A judge sees each pair in both orders, is read strictly, and its key is found nowhere."""

import asyncio
import itertools
from collections import Counter

import pandas as pd
import pytest

import disco_core as dc
from artifact.measure import judge
from artifact.measure import quality as quality_session
from tests.helpers.loopback import chunk, events, reply, serving
from tests.helpers.measuring import a_run

KEY = "sk-a-key-that-must-not-appear"


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [("A", "A"), (" b.\n", "B"), ("TIE", "TIE"), ('"a"', "A"), ("**B**", "B")]
    + [(said, None) for said in ("", "A or B", "Answer A", "C", "A B", "I think A", "ab", "A: better")],
)
def test_a_verdict_is_read_strictly(reply, verdict):
    assert judge.read(reply) == verdict


def judging(url, pairs=3):
    """What judges behind a server make of pairs of (long migrated, short unmigrated) answers."""

    async def go():
        asked = [judge.Pair(f"Why, {{k}} {k}?", f"because of {k}, which is long", "because") for k in range(pairs)]
        judges = judge.endpoints("openai:one,openai:two", f"{url}/v1")
        found = []
        for one in judges:
            async with one:
                found += await judge.verdicts(one, asked)
        return found

    return pd.DataFrame(asyncio.run(go()))


def longer(handler):
    """Prefers the longer of the two answers."""
    shown = handler.asked["messages"][0]["content"]
    a, b = (shown.split(f"Answer {letter}: ")[1].split("\n\n")[0] for letter in "AB")
    events(chunk("A" if len(a) > len(b) else "B"), chunk(reason="stop"), b"[DONE]")(handler)


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (events(chunk("A"), chunk(reason="stop")), {"migrated": 6, "unmigrated": 6}),  # leans to a place
        (longer, {"migrated": 12}),
        (events(chunk("T"), chunk("IE"), chunk(reason="stop")), {"tie": 12}),
        (events(chunk("Both are good."), chunk(reason="stop")), {"none": 12}),
        (events(chunk("A")), {"none": 12}),  # cut
        (lambda h: reply(h, {"error": {"message": KEY}}, 429), {"none": 12}),
    ],
)
def test_a_judge_sees_every_pair_in_both_orders(monkeypatch, says, expected):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(says) as url:
        found = judging(url)
    assert Counter(found.verdict) == expected
    assert sorted(zip(found.judge, found.pair, found["first"], strict=True)) == sorted(
        itertools.product(["openai:one", "openai:two"], range(3), ["migrated", "unmigrated"])
    )
    assert KEY not in found.to_csv()


def test_without_a_key_there_is_no_judge_and_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(quality_session, "ends", lambda **_: pytest.fail("it began to measure"))
    with pytest.raises(dc.EndpointError, match="no key: set OPENAI_API_KEY"):
        quality_session.measure(a_run(tmp_path, "quality", judges="openai:one", second=0))
    with pytest.raises(dc.EndpointError, match="no key: set OPENAI_API_KEY"):
        judge.server("openai:one")


def test_a_judges_server_is_recorded_without_its_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "https://judges.example/v1")
    told = {"name": "openai:a, openai:b", "address": "https://judges.example/v1"}
    assert judge.server("openai:a, openai:b") == told
    assert judge.server("openai:a", "http://other:1/v1") == {"name": "openai:a", "address": "http://other:1/v1"}
    assert judge.server("") is None
