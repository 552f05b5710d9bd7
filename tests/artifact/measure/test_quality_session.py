"""A session of the quality measurement: on endpoints that are known, and on real ones in small."""

import asyncio
import contextlib
import json
import math
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

import disco_core as dc
from artifact.analysis import quality
from artifact.data import model
from artifact.errors import ArtifactError
from artifact.measure import judge, store
from artifact.measure import quality as quality_session
from artifact.publish import claims
from artifact.publish.run import run
from disco_core.endpoints.base import Endpoint, Generation, Token
from disco_core.endpoints.local_server import LocalServer
from tests.helpers.measuring import a_run, defaults

KEY = "sk-a-key-that-must-not-appear"
SMALL = {"prompts": 3, "max_tokens": 12, "positions": [2, 5], "second": 0}


class Speaker(Endpoint):
    """An endpoint whose tokens are words; it records each prefix, and may be gone after some answers."""

    continues, temperature, prefix_cache = True, 0.0, True

    def __init__(self, name, vocabulary, length=9, lasts=math.inf):
        self.name, self.vocabulary, self.length, self.lasts = name, vocabulary, length, lasts
        self.given, self.begun = [], []

    def count(self, prompt):
        return len(prompt)

    def generate(self, prefix):
        return Generation(self._spoken(prefix))

    async def _spoken(self, prefix):
        if len(self.given) >= self.lasts:
            raise dc.RefusedError(self.name, "it is gone")
        self.given.append(prefix)
        self.begun += [] if self.prefix_cache else [prefix.prompt]
        first = len(prefix.generated)
        for index in range(first, min(self.length, first + prefix.max_tokens)):
            yield Token(index, f" {self.name}{index}-{prefix.seed % 97}", 1000 + index)

    async def aclose(self):
        pass

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def session(folder, server, device, judges=(), **changed):
    """The tables of a session on these endpoints; what was measured before is in the folder."""
    taken = a_run(folder, "quality", **SMALL | changed)
    second = Path("any.gguf") if "second" in changed else None
    return asyncio.run(quality_session._Session(taken, server, device, second).run(judges))


@pytest.fixture
def spoken(tmp_path):
    server, device = Speaker("server", "v"), Speaker("device", "v", length=5)
    return session(tmp_path, server, device), server, device


def test_an_answer_migrates_after_the_tokens_that_it_has_unmigrated(spoken):
    tables, _, _ = spoken
    rows = tables["requests"]
    assert list(rows) == quality_session.REQUESTS
    assert not rows.duplicated(["source", "target", "moved", *quality.KEYS[1:]]).any()
    alone, moved = rows[rows.moved == "alone"], rows[rows.moved != "alone"]
    assert (alone.source == alone.target).all()
    # the device's five tokens can move after two, the server's nine after five as well
    assert Counter(moved.source) == {"device": 3 * 2, "server": 3 * 2 * 2}
    both = moved.merge(alone, on=quality.KEYS, suffixes=("", "_alone"))
    assert len(both) == len(moved)
    assert (both.before == both.before_alone).all()
    for row in both.itertuples():
        assert len(row.before.split()) == row.at
        assert {word.split("-")[0].rstrip("0123456789") for word in row.after.split()} <= {row.target}
        assert row.tokens == len((row.before + row.after).split())
    assert (moved.groupby("sample").moved.unique().str[0] == ["ids", "text"]).all()
    assert tables["perplexity"].empty
    assert tables["verdicts"].empty


def test_the_target_is_given_all_of_the_answer_so_far_and_nothing_else(spoken):
    _, server, device = spoken
    handed = [prefix for prefix in server.given + device.given if prefix.generated]
    assert len(handed) == 18
    for prefix in handed:
        assert prefix.prompt.endswith(f"{quality_session.BRIEF}<|im_end|>\n<|im_start|>assistant\n")
        assert len(prefix.generated) + prefix.max_tokens == SMALL["max_tokens"]
        assert [token.index for token in prefix.generated] == list(range(len(prefix.generated)))
        assert all(token.text for token in prefix.generated)
    ids = Counter(all(token.id is not None for token in prefix.generated) for prefix in handed)
    assert ids == {True: 9, False: 9}  # as text none has its id
    assert all(token.id is None for prefix in handed for token in prefix.generated if prefix.generated[0].id is None)
    seeds = [prefix.seed for prefix in server.given]
    assert len(set(seeds)) == len(seeds)  # each answer of an endpoint is another sample


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"positions": [8, 8]}, "positions must ascend"),
        ({"positions": []}, "positions must ascend"),
        ({"positions": [8, 60]}, "below max_tokens=60"),
        ({"positions": [2.5]}, "a position must be a whole number"),
        ({"positions": 8}, "a list of tokens"),
        ({"prompts": 121}, "121 prompts"),
        ({"longest": 0}, "longest"),
        ({"max_tokens": 900}, "at most 1024"),
        ({"temperature": 0.0}, "temperature"),
        ({"second": -1}, "second"),
        ({"judges": "gpt"}, "openai:<model>"),
        ({"judges": "openai:a, openai:a"}, "twice"),
        ({"judges": 3}, "judges"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_mistyped_setting_is_named(tmp_path, bad, word):
    with pytest.raises(dc.InputError, match=word):
        quality_session.measure(a_run(tmp_path, "quality", **bad))


def test_what_was_interrupted_goes_on_to_the_same_tables(tmp_path, monkeypatch):
    def told(_llama, asked, few):
        return [{name: row[name] for name in quality_session.PERPLEXITY[:6]} | {"nats": len(asked)} for row in few]

    async def verdicts(one, pairs):
        one.given += pairs
        return [{"judge": one.name, "pair": k, "first": "migrated", "verdict": "tie"} for k in range(len(pairs))]

    monkeypatch.setattr(model, "load", lambda *_, **__: Speaker("", ""))
    monkeypatch.setattr(quality_session, "_read", told)
    monkeypatch.setattr(judge, "verdicts", verdicts)

    def go(name, **lasts):
        """Tables, or nothing where an endpoint is gone; and how many requests each was sent."""
        given = {"server": ("v", 9), "device": ("v", 6), quality_session.SECOND: ("w", 7), "openai:one": ("", 0)}
        ends = {end: Speaker(end, *said, lasts.get(end, math.inf)) for end, said in given.items()}
        server, device, second, one = ends.values()
        monkeypatch.setattr(quality_session, "LlamaCppEndpoint", lambda *_, **__: second)
        (tmp_path / name).mkdir(exist_ok=True)
        found = {}
        with contextlib.suppress(dc.RefusedError):
            tables = session(tmp_path / name, server, device, [one], second=2)
            found = {table: rows.to_csv(index=False) for table, rows in tables.items()}
        return found, [len(end.given) for end in ends.values()]

    whole, asked = go("whole")
    assert [len(table.splitlines()) for table in whole.values()] == [1 + 48 + 24, 1 + 16, 1 + 12]
    assert asked == [18, 18 + 8, 4 + 8, 12]
    assert go("resumed", server=7)[0] == {}
    interrupted, again = go("resumed", **{quality_session.SECOND: 7})
    assert (interrupted, again[0]) == ({}, 12)  # one prompt was there
    resumed, rest = go("resumed")
    assert resumed == whole
    assert rest == [0, 4, 6, 12]  # the device only goes on for the second model, with its first answer
    assert go("resumed") == (whole, [0, 0, 0, 0])


def test_an_endpoint_goes_on_from_its_cache_for_the_same_prompt_only(spoken):
    _, *both = spoken
    for end in both:
        assert len(end.begun) == SMALL["prompts"] == len(set(end.begun))
        assert {prefix.prompt for prefix in end.given} == set(end.begun)


def test_the_second_model_may_be_missing_but_not_where_it_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "SECOND_PACKAGE", "a_package_that_nobody_has")
    monkeypatch.setattr(quality_session, "ends", lambda **_: pytest.fail("it began to measure"))
    with model.second_model() as path:
        assert path is None
    with pytest.raises(ArtifactError, match="the second model is not installed"):
        quality_session.measure(a_run(tmp_path, "quality", second=2))


@pytest.fixture(scope="session")
def measured(tmp_path_factory):
    """Really measured in small, with a local server as the judge, which is too small to give a verdict."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        local = stack.enter_context(LocalServer(model.smollm2_path(), api_key=KEY))
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setattr(store, "STORED", folder / "stored")
        patch.setattr(judge, "REPLY_TOKENS", 8)
        few = {"quick": False, "prompts": 3, "max_tokens": 32, "positions": [8, 16], "second": 0}
        asked = defaults("measure_quality") | few | {"judges": "openai:smollm2", "judge_url": f"{local.url}/v1"}
        del asked["out"]
        about = {"out": folder / "quality", "server": judge.server(asked["judges"], asked["judge_url"])}
        store.measured("quality", asked, quality_session.measure, cores=0, tables=quality_session.TABLES, **about)
    return folder, store.read(folder, "quality")


@pytest.mark.slow
def test_two_real_endpoints_and_a_judge(measured):
    _, found = measured
    rows = found["requests"]
    moved = rows[rows.moved != "alone"]
    assert {"device", "server"} == set(moved.source)
    assert (moved.tokens > moved["at"]).mean() > 0.8
    both = moved.merge(rows[rows.moved == "alone"], on=quality.KEYS, suffixes=("", "_alone"))
    assert (both.before == both.before_alone).all()
    assert (both.after == both.after_alone).mean() < 0.5  # samples of their own
    told = found["verdicts"]
    assert len(told) == 2 * len(told.drop_duplicates(["source", "moved", "prompt"]))
    assert set(told.verdict) <= {"migrated", "unmigrated", "tie", "none"}
    assert found.manifest["server"]["name"] == "openai:smollm2"


@pytest.mark.slow
def test_answers_do_not_hang_on_what_was_measured_before(measured, tmp_path):
    folder, found = measured
    (journal,) = folder.glob("stored/*/pieces.jsonl")
    lines = [line for line in journal.read_text().splitlines() if '"server, prompt' in line]
    (tmp_path / "pieces.jsonl").write_text("\n".join(lines[:2]))
    some = {name: found.settings[name] for name in ("prompts", "max_tokens", "positions", "second")}
    again = quality_session.measure(a_run(tmp_path, "quality", **some))
    pd.testing.assert_frame_equal(again["requests"], found["requests"])


@pytest.mark.slow
def test_the_notebook_decides_and_never_shows_the_key(measured, tmp_path):
    folder, _ = measured
    run("quality", tmp_path, out=str(tmp_path), measurements=str(folder))
    found = {one["id"]: one for one in json.loads((tmp_path / "quality.claims.json").read_text())}
    assert found.keys() == {"D10", "D10a", "Q1"}
    assert {one["verdict"] for one in found.values()} == {claims.NOT_TESTED}  # of so few answers
    assert "not with the defaults of measure_quality" in found["Q1"]["reason"]
    shown = pd.read_csv(tmp_path / "quality.csv")
    assert shown.chrF.between(0, 100).all()
    written = [path.read_bytes() for path in [*tmp_path.rglob("*"), *folder.rglob("*")] if path.is_file()]
    assert len(written) > 20
    assert not any(KEY.encode() in content for content in written)


@pytest.mark.slow
def test_the_measuring_notebook_shows_what_it_measured(tmp_path):
    made = {"prompts": 2, "max_tokens": 12, "positions": [2, 5], "second": 0}
    run("measure_quality", tmp_path, out=str(tmp_path / "quality"), **made)
    found = store.read(tmp_path, "quality")
    assert set(found["requests"].prompt.value_counts()) <= {2, 4, 8, 12, 16}
    assert "quick size" in found.disturbed
