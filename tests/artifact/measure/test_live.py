"""Live runs: what is asked for is what was measured, and nothing else is taken for it."""

import asyncio
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import disco_core as dc
from artifact.analysis import scenario
from artifact.data import model, traces
from artifact.files import ROOT
from artifact.measure import answers, ends, live, pd_device, store
from artifact.measure.pd_device import long_prompts
from tests.helpers import scripts
from tests.helpers.measuring import a_run


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"server": "openai"}, "openai:<model>"),
        ({"server": "openai:"}, "openai:<model>"),
        ({"budget": 1.5}, "budget"),
        ({"prompts": 0}, "prompts"),
        ({"longest": 0}, "longest"),
        ({"pairs": 2.5}, "pairs"),
        ({"load": -0.1}, "load"),
        ({"service": "gpt-5"}, "gpt-4o-mini"),
        ({"seed": 1.5}, "seed"),
        ({"prompts": 121, "longest": 1000}, "121 prompts .* 120 have up to longest=1000"),
        ({"seams": 130}, "130 seams"),
        ({"longest": 15, "prompts": 1, "raw_prompts": 1, "seams": 1}, "6 rate trials"),
        ({"max_tokens": 500}, "at most 1024"),
    ],
)
def test_a_mistyped_setting_is_named(tmp_path, bad, word):
    with pytest.raises(dc.InputError, match=word):
        live.measure(a_run(tmp_path, "live", **bad))


def test_random_dispatch_answers_as_the_endpoint_that_it_picks_does_alone(tmp_path, monkeypatch):
    """Rows of Stoch are those of the endpoint that its draws pick, which are the plan's own."""
    run = a_run(tmp_path, "live", prompts=40, raw_prompts=1)
    table = ends.prompts(48)
    server, device = (SimpleNamespace(name=name, count=model.count_tokens) for name in ("server", "device"))
    session = live._Session(run, server, device)

    async def record(built, plan, rule, server, n, request):
        return SimpleNamespace(migrated_at=0, tokens=[], plan=plan)

    async def rows():
        profile = dc.DeviceProfile(250.0, 100.0)
        return [row async for row in session._policies("raw", 40, dc.TTFTDistribution([0.2, 0.9]), profile)]

    session._record = record
    monkeypatch.setattr(
        live, "request_row", lambda one: {"asked": one.plan.draw([30], np.random.default_rng(0))[0, 0]}
    )
    found = pd.DataFrame(asyncio.run(rows()))
    assert len(found) == 40 * 6
    assert set(found.prompt) <= set(table.id)
    for policy in ("Stoch-D", "Stoch-S"):
        one = found[found.policy == policy].sort_values("request")
        plan = scenario.plans([30], dc.TTFTDistribution([0.2, 0.9]), 0.5)[policy][0]
        for row in one.itertuples():
            drawn = plan.draw(np.array([row.prompt_tokens]), np.random.default_rng([0, row.request]))[:, 0]
            assert (row.server_delay_s, row.device_delay_s) == tuple(drawn)
            assert np.isinf(row.asked) == np.isinf(row.server_delay_s)  # the server was asked, or was not
        assert 5 < np.isinf(one.server_delay_s).sum() < 35


@pytest.mark.parametrize("name", traces.services())
@pytest.mark.parametrize("constraint", dc.Constraint)
def test_the_price_of_energy_makes_the_named_endpoint_the_constrained_one(name, constraint):
    assert scenario.cost_model(traces.service(name), constraint).constraint is constraint


def test_prompts_are_as_short_as_asked_for():
    assert ends.prompts(48).tokens.max() <= 48
    assert len(ends.prompts()) == 120
    with pytest.raises(dc.InputError, match="no prompt has up to 3 tokens"):
        ends.prompts(3)


@pytest.mark.parametrize("bad", [None, 3, b"hello", "", " \n", "half \ud83d of it", ["hello"]])
def test_what_is_no_prompt_is_not_built(bad):
    with pytest.raises(dc.InputError, match=r"^prompt must"):
        model.build(bad)


def test_answers_are_cut_where_ours_are():
    cut, whole = scenario.output_lengths(20), traces.lengths("alpaca", "output")
    assert cut.tokens.max() == 20
    assert cut.counts.sum() == whole.counts.sum()
    assert cut.mean == pytest.approx(np.average(np.minimum(whole.tokens, 20), weights=whole.counts))


def test_behind_an_emulated_network_delay_the_later_of_the_two_counts():
    delay_s, own = dc.TTFTDistribution([0.1, 0.5, 3.0]), np.array([0.2, 0.7])
    ttft = scenario.with_network_delay(delay_s, own)
    brute = [max(x, y) for x in delay_s.values_s for y in own]
    for q in (0.2, 0.5, 0.6, 0.9):
        assert ttft.quantile(q) == np.quantile(brute, q, method="inverted_cdf")
    assert ttft.mean == pytest.approx(np.mean(brute), rel=0.01)


@pytest.mark.parametrize("n", [1, 7, 60, 112])
def test_prompts_that_are_measured_have_lengths_like_all(n):
    lengths = [model.count_tokens(built) for built in ends.prompts(48).built]
    asked = live.spread(lengths, n)
    assert asked == sorted(set(asked))
    assert len(asked) == n
    quartiles = np.quantile(lengths, [0.25, 0.5, 0.75])
    apart = np.abs(np.quantile([lengths[k] for k in asked], [0.25, 0.5, 0.75]) - quartiles)
    assert n < 60 or apart.max() <= 1


def test_work_runs_also_where_a_loop_is_running():
    async def work():
        await asyncio.sleep(0)
        return {}

    async def notebook():
        return answers.run_in_thread(work())

    assert asyncio.run(notebook()) == answers.run_in_thread(work()) == {}


def marked(mark):
    """Processes that were started with a mark in their environment, whoever their parent is by now."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes() and (folder / "stat").read_text().split()[2] != "Z":
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to see what is left running")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda stop: stop.name)
def test_stopped_in_the_middle_it_leaves_no_server_and_keeps_its_pieces(tmp_path, stop):
    mark = os.urandom(16).hex()
    path = os.pathsep.join([str(ROOT), str(ROOT / "notebooks")])
    # a shell's background job ignores Ctrl-C, and so would what the tests start if they run in one
    attend = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [sys.executable, scripts.path("measure_live.py"), str(tmp_path)],
        env=os.environ | {"MARK": mark, "PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
        preexec_fn=attend,
    )
    wait_for(lambda: any("local_server" in line for line in marked(mark.encode())))
    stored = tmp_path / "stored"
    wait_for(lambda: sum(one.read_text().count('"piece"') for one in stored.glob("*/pieces.jsonl")) > 4)
    process.send_signal(stop)
    process.wait(timeout=60)
    wait_for(lambda: not marked(mark.encode()))
    assert not (tmp_path / "live").exists()
    (journal,) = (tmp_path / "stored").glob("*/pieces.jsonl")
    kept = journal.read_text()
    assert len(kept.splitlines()) > 3
    if stop == signal.SIGINT:  # and goes on from there
        subprocess.run(process.args, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.DEVNULL, check=True)
        assert journal.read_text().startswith(kept)
        before, after = (
            [json.loads(line) for line in text.splitlines() if line] for text in (kept, journal.read_text())
        )
        taken_again = {one["piece"] for one in before} & {one["piece"] for one in after[len(before) :]}
        assert taken_again <= {one["piece"] for one in before if one["busy"]["disturbed"]}
        assert len(store.read(tmp_path, "live")["requests"]) == 6 * (2 + 3)


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"rho": 0}, "rho"),
        ({"tpot_limit_s": 0}, "tpot_limit_s"),
        ({"shortest_s": 0}, "shortest_s"),
        ({"shortest_s": 3.0, "longest_s": 2.0}, "below longest_s=2.0"),
        ({"max_tokens": 4000}, "max_tokens"),
        ({"prompts": 1.5}, "prompts"),
        ({"service": "gpt-5"}, "gpt-4o-mini"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_mistyped_setting_of_pd_device_is_named(tmp_path, bad, word):
    with pytest.raises(dc.InputError, match=word):
        pd_device.measure(a_run(tmp_path, "pd_device", **bad))


def test_a_long_prompt_has_the_wanted_length_and_ends_with_its_question():
    wanted_tokens = (80, 160, 320, 640, 3800)
    for pieces, wanted in zip(long_prompts(wanted_tokens), wanted_tokens, strict=True):
        text = "".join(piece for piece, _ in pieces)
        assert wanted <= model.count_tokens(text) <= wanted + 128
        assert [stays for _, stays in pieces] == [True, False, True]
        assert text == model.build(text.removeprefix("<|im_start|>user\n").split("<|im_end|>")[0])


def test_a_device_whose_line_noise_hides_has_one_through_the_origin():
    pairs = pd.DataFrame({"prompt_tokens": [20, 90], "device_s": [0.9, 0.4]})
    rates = pd.DataFrame({"end": ["device"], "gap_s": [0.02]})
    profile = answers.device_profile(pairs, rates)
    assert (profile.startup, profile.decode_rate) == (0.0, 50.0)
    assert profile.prefill_rate == pytest.approx((20**2 + 90**2) / (20 * 0.9 + 90 * 0.4))
