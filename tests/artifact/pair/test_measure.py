"""A pair is measured: what is sent is what was announced, a bad server is one line, and no file has the key."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
import types

import numpy as np
import pytest

import disco_core as dc
from artifact.data.model import smollm2_path
from artifact.errors import ArtifactError
from artifact.pair import measure as measuring
from artifact.pair import readers
from artifact.pair.pair import load
from artifact.pair.progress import SAME_S, Progress
from disco_core.endpoints.local_server import LocalServer
from disco_core.errors import DiscoError, InputError
from tests.helpers.counting_server import MODEL, TTFT_S, Counting
from tests.helpers.loopback import KEY, deaf, free_port, speaking
from tests.helpers.real_servers import litellm_proxy, llama_cpp_python

SPEEDS = {"DEVICE": "80,20", "TOKENS": "16", "REQUESTS": "12"}
PRICES = {"PRICE_IN": "2", "PRICE_OUT": "8"}


class Told(Progress):
    """Progress that keeps what it says."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch, tmp_path):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(measuring, "SERVICES", tmp_path / "services")


def measured(server, tmp_path, told=None, **given):
    """The pair, what was said, and the server."""
    told = told or Told()
    with server.running() as url:
        folder = measuring.measure(SPEEDS | {"SERVER": url, "OUT": str(tmp_path / "out")} | given, told)
    return load(folder), told.lines, server


def test_what_is_sent_is_what_was_announced(tmp_path):
    pair, lines, server = measured(Counting(), tmp_path, **PRICES)
    said = next(line for line in lines if line.startswith("up to"))
    requests, prompt, generated, probed = map(int, re.findall(r"(?<!\w)\d+(?!\.)", said))
    assert requests == len(server.measured) == 12
    assert probed == len(server.asked) - 12
    assert generated == sum(server.generated[k] for k in server.measured)
    assert prompt == pair.requests.prompt_tokens.sum()
    assert pair.requests.output_tokens.sum() == generated
    cost = float(re.search(r"cost: up to (\S+) \$", "\n".join(lines))[1])
    assert cost == pytest.approx((prompt * 2 + generated * 8) / 1e6, rel=1e-3)


def test_a_pair_has_what_the_server_did(tmp_path):
    pair, lines, server = measured(Counting(), tmp_path)
    assert (pair.requests.failed, pair.requests.form, len(pair.requests)) == (0, "measured", 12)
    assert (pair.requests.ttft_s >= TTFT_S).all()
    assert np.median(pair.requests.ttft_s) < TTFT_S + 0.2
    assert 50 < pair.server_rate < 500
    assert abs(pair.requests.began_s - time.time()) < 60
    assert pair.about["model"] == MODEL
    assert pair.about["continuation"] == "continue_final_message"
    assert "streams: yes" in "\n".join(lines)
    assert "no key is sent, and none is needed" in lines
    sent = [server.asked[k]["messages"][0]["content"] for k in server.measured]
    assert len(set(sent)) == 12
    again = readers.read(tmp_path / "out" / "record.csv")
    np.testing.assert_array_equal(again.ttft_s, pair.requests.ttft_s)


def test_requests_arrive_as_scheduled(tmp_path):
    pair, _, server = measured(Counting(), tmp_path, RATE="20", REQUESTS="30")
    arrived = np.array([server.arrived[k] for k in server.measured])
    order = np.argsort(arrived)
    late = (arrived[order] - arrived.min()) - pair.requests.arrival_s
    assert len(server.measured) == 30
    assert np.quantile(np.abs(late - np.median(late)), 0.8) < 0.05
    assert np.diff(pair.requests.arrival_s).min() < TTFT_S  # sent while others were running


def test_failures_are_counted_and_told(tmp_path):
    pair, _, server = measured(Counting(fails=lambda k: k in (2, 7)), tmp_path, REQUESTS="14")
    assert len(server.measured) == 14
    assert (pair.requests.failed, len(pair.requests)) == (2, 12)
    assert any(
        note.startswith("2 of 14 requests failed, most often with: SERVER: 503") for note in pair.requests.notes
    )


def test_a_server_that_fails_for_good_ends_it(tmp_path):
    pair, _, server = measured(Counting(fails=lambda k: k >= 11), tmp_path, REQUESTS="60")
    assert len(server.measured) == 21
    assert (pair.requests.failed, len(pair.requests)) == (10, 11)
    with pytest.raises(ArtifactError, match=r"0 of 10, at least 10 are needed; 10 requests in a row failed.* 503"):
        measured(Counting(fails=lambda k: True), tmp_path)


def test_an_interrupt_keeps_what_there_is(tmp_path):
    """Ctrl-C as the terminal sends it, to the process, when the 15th request comes."""
    before = signal.getsignal(signal.SIGINT)
    server = Counting(on=lambda k: os.kill(os.getpid(), signal.SIGINT) if k == 14 else None)
    pair, _, server = measured(server, tmp_path, REQUESTS="60", NAME="mine")
    assert len(server.measured) == 15
    assert len(pair.requests) == 14
    assert "measuring ended early: interrupted" in pair.requests.notes
    assert len(readers.read(tmp_path / "services" / "mine.csv")) == 14
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_that_leaves_too_little_is_one_line(tmp_path):
    server = Counting(on=lambda k: os.kill(os.getpid(), signal.SIGINT) if k == 5 else None)
    with pytest.raises(ArtifactError, match=r"^requests with a first token: 5 of 6, at least 10 .*interrupted$"):
        measured(server, tmp_path)


def test_a_second_interrupt_ends_it(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    progress, reached = Progress(quiet=True), []

    def twice():
        with progress.catching():
            for wait_s in (0.01, 2 * SAME_S, 0.01):  # the second is the same Ctrl-C
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(wait_s)
                reached.append(wait_s)

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert progress.interrupted
    assert reached == [0.01, 2 * SAME_S]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_key_is_sent_and_is_in_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = Counting(key=KEY, fails=lambda k: k == 3)
    _, lines, server = measured(server, tmp_path, NAME="mine")
    assert set(server.keys) == {f"Bearer {KEY}"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"pair.json", "record.csv", "requests.csv", "mine.csv"} <= {path.name for path in files}
    assert not any(KEY.encode() in path.read_bytes() for path in files)
    assert KEY not in "\n".join(lines)


@pytest.mark.parametrize(
    ("server", "given", "words"),
    [
        ({"key": KEY}, {}, "SERVER needs a key: set OPENAI_API_KEY"),
        ({}, {"MODEL": "absent"}, "MODEL absent: .*does not exist; the server has counted"),
        (
            {"models": None, "base": ""},
            {},
            r"models \(it answers 404\); SERVER often ends in /v1; no key is sent",
        ),
        ({"models": None, "base": ""}, {"MODEL": "m"}, "SERVER: 404 at .*; SERVER often ends in /v1"),
        ({"models": ("a", "b")}, {}, "MODEL is missing; the server has a, b"),
        ({"models": None}, {}, "MODEL is missing; the server does not list its models"),
        ({"wrong": "proxy", "models": None}, {}, r"MODEL is missing; .*\(it answers 500\); no key is sent"),
        ({"wrong": "proxy", "models": None}, {"MODEL": "m"}, "SERVER: 400: No connected db.; no key is sent"),
        ({"wrong": "json"}, {}, "SERVER does not stream: its answer came in one piece"),
        ({"wrong": "together"}, {}, "SERVER does not stream: its 16 pieces came together"),
        ({"wrong": "reasons"}, {}, "SERVER: it only reasons within 16 tokens; raise TOKENS"),
        ({"wrong": "silent"}, {}, "SERVER: its answer has no token"),
    ],
)
def test_a_server_that_cannot_be_measured_is_one_line(tmp_path, server, given, words):
    server = Counting(**server)
    with pytest.raises(DiscoError, match=words) as told:
        measured(server, tmp_path, **given)
    assert "\n" not in str(told.value)
    assert not server.measured
    assert not (tmp_path / "out").exists()


def test_a_key_that_is_not_accepted_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-987654321")
    with pytest.raises(ArtifactError, match="SERVER does not accept the key in OPENAI_API_KEY") as told:
        measured(Counting(key=KEY), tmp_path)
    assert "sk-another" not in str(told.value)


def test_an_address_without_a_server_is_one_line(tmp_path, monkeypatch):
    def refused(url):
        with pytest.raises(ArtifactError, match=r"^SERVER: ") as told:
            measuring.measure(SPEEDS | {"SERVER": url, "OUT": str(tmp_path / "out")}, Told())
        assert "\n" not in str(told.value)

    refused(f"http://127.0.0.1:{free_port()}/v1")
    refused("http://no-such-host.invalid/v1")
    with speaking(b"SSH-2.0-OpenSSH_9.6\r\n") as address:
        refused(f"http://{address}/v1")


def test_oddities_of_a_server_are_met(tmp_path):
    pair, _, server = measured(Counting(wrong="temperature", continues=False, models=None), tmp_path, MODEL="m")
    assert all("temperature" not in body for body in server.asked)
    assert pair.about["continuation"] == "none"
    assert any(note.startswith("the server does not continue") for note in pair.notes)


def test_what_costs_more_than_a_dollar_needs_a_yes(tmp_path):
    server = Counting()
    prices = {"PRICE_IN": "2000", "PRICE_OUT": "8000"}
    with pytest.raises(InputError, match=r"measuring may cost \d\.\d\d \$, which is over 1 \$: allow it with YES=1"):
        measured(server, tmp_path, **prices)
    assert not server.measured
    assert len(measured(server, tmp_path, **prices, YES="1")[0].requests) == 12


def test_too_few_requests_for_the_time_are_one_line(tmp_path):
    with pytest.raises(InputError, match=r"RATE=0.1 brings \d requests in the time for the server, at least 10"):
        measured(Counting(), tmp_path, RATE="0.1", MINUTES="0.5")


def test_few_prompts_are_repeated_and_said_to_be(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt\nWhy?\nHow so?\nWhen was that?\n")
    pair, _, server = measured(Counting(), tmp_path, PROMPTS=str(path))
    sent = [server.asked[k]["messages"][0]["content"] for k in server.measured]
    assert sorted(sent) == sorted(["Why?", "How so?", "When was that?"] * 4)
    assert any(note.startswith("12 requests were made of 3 prompts") for note in pair.notes)


def test_a_record_is_read_and_nothing_is_sent(tmp_path):
    rows = "".join(f"{k},{20 + k},{0.5 + k / 100},{k}\n" for k in range(12))
    (tmp_path / "t.csv").write_text(f"arrival_s,prompt_tokens,ttft_s,output_tokens\n{rows}".replace(",0\n", ",\n"))
    server = Counting()
    pair, _, server = measured(server, tmp_path, TRACE=str(tmp_path / "t.csv"), **PRICES, NAME="read")
    assert not server.asked
    assert not server.listed
    assert pair.requests.ttft_s.tolist() == [0.5 + k / 100 for k in range(12)]
    assert np.isnan(pair.server_rate)
    assert (pair.device.prefill_rate, pair.device.decode_rate) == (80.0, 20.0)
    again = readers.read(tmp_path / "services" / "read.csv")
    np.testing.assert_array_equal(again.ttft_s, pair.requests.ttft_s)
    np.testing.assert_array_equal(again.output_tokens, pair.requests.output_tokens)


def test_a_port_that_takes_no_connection_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("artifact.pair.probe.REACH_S", 0.3)
    with deaf() as address, pytest.raises(ArtifactError, match=r"^SERVER: it cannot be reached"):
        measuring.measure(SPEEDS | {"SERVER": f"http://{address}/v1"}, Told())


@pytest.mark.slow
def test_live_answers_are_added_and_not_more_is_sent_than_announced(tmp_path, monkeypatch):
    study = types.ModuleType("artifact.pair.study")
    study.recommend = lambda pair: types.SimpleNamespace(
        plan=dc.plan_stochastic(0.5, dc.Constraint.DEVICE, both=True), rule=None
    )
    monkeypatch.setitem(sys.modules, "artifact.pair.study", study)
    given = {"DEVICE": "", "MINUTES": "0.2", "LIVE": "4", "TOKENS": "8"}
    pair, lines, server = measured(Counting(), tmp_path, **PRICES, **given)
    announced = int(re.search(r"up to (\d+) requests", "\n".join(lines))[1])
    assert 12 + 4 <= len(server.measured) <= announced
    assert pair.live.groupby("request")["policy"].agg(set).tolist() == [{"server only", "recommended"}] * 4
    assert (pair.live["failure"] == "").all()
    assert (pair.live["cost"] > 0).all()
    assert (pair.live["tokens"] == 8).all()
    sent = [server.asked[k]["messages"][0]["content"] for k in server.measured]
    assert not set(sent[:12]) & set(sent[12:])  # others than those that the server has in its prefix cache
    assert pair.trials["prompt_tokens"].nunique() > 1
    assert pair.device.decode_rate > 1


def test_it_is_called_from_a_notebook_as_well(tmp_path):
    """That is, where an event loop is running already."""

    async def cell():
        return measured(Counting(), tmp_path)[0]

    assert len(asyncio.run(cell()).requests) == 12


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama-cpp-python", "LiteLLM"])
def test_servers_that_others_wrote_are_measured(tmp_path, monkeypatch, kind):
    told = Told()
    with contextlib.ExitStack() as stack:
        if kind == "LiteLLM":
            behind = stack.enter_context(LocalServer(smollm2_path(), api_key=KEY, n_ctx=1024))
            url, key = stack.enter_context(litellm_proxy(f"{behind.url}/v1", KEY))
            monkeypatch.setenv("OPENAI_API_KEY", key)
        else:
            url = stack.enter_context(llama_cpp_python(smollm2_path()))
        given = {"SERVER": url, "OUT": str(tmp_path), "MINUTES": "0.4", "REQUESTS": "12", "TOKENS": "8"}
        pair = load(measuring.measure(given, told))
    assert (len(pair.requests), pair.requests.failed) == (12, 0)
    assert pair.server_rate > 1
    assert pair.about["continuation"] == ("continue_final_message" if kind == "LiteLLM" else "none")
    assert not any(os.environ.get("OPENAI_API_KEY", KEY) in path.read_text() for path in tmp_path.glob("*.*"))
