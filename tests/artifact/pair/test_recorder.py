"""The recorder against servers on this machine: the rate it finds, when it sends, its files, its one-line errors."""

import json
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest

from artifact.__main__ import main
from artifact.data.model import smollm2_path
from artifact.files import ROOT
from artifact.pair import readers, recorder
from disco_core.endpoints.local_server import LocalServer
from disco_core.errors import InputError
from tests.helpers.loopback import chunk, events, free_port, reply, serving

SERVICE_S = 0.05
MODELS = {"/v1/models": {"data": [{"id": "m", "max_model_len": 512}]}}


class Queue:
    """An answer after a fixed service, one request at a time, first come, first served."""

    def __init__(self, tokens=2):
        self.free, self.asked, self.tokens = threading.Lock(), [], tokens

    def __call__(self, handler):
        self.asked.append((time.monotonic(), handler.asked))
        with self.free:
            time.sleep(SERVICE_S)
        events(chunk("Yes"), chunk(" it is", "stop"), chunk(usage=self.tokens), b"[DONE]")(handler)


def told(capsys):
    """What went to stderr, without progress bars."""
    return [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line and "|" not in line]


def test_a_queue_of_known_service_is_recorded_as_lindleys_recursion_has_it(tmp_path, capsys):
    queue = Queue()
    with serving(queue, MODELS) as url:
        asked = ["record", "--url", url, "--load", "0.5", "0.8", "--requests", "30", "--seed", "3"]
        assert main([*asked, "--out", str(tmp_path)]) == 0
    lines = told(capsys)
    (rate,) = (float(found[1]) for line in lines if (found := re.match(r"it saturates at (\S+) ", line)))
    assert rate == pytest.approx(1 / SERVICE_S, rel=0.1)
    for load in (0.5, 0.8):
        path = tmp_path / f"azure-conv-load-{load}.csv"
        rows, found = pd.read_csv(path), readers.read(path)
        assert (len(found), found.failed, found.form) == (30, 0, "csv")
        assert rows.arrival_s.max() <= 30 / (load * rate) * 1.01
        assert (rows.prompt_tokens == 9).all()  # as the server billed them
        free, expected = 0.0, []
        for at in rows.arrival_s:
            free = max(free, at) + SERVICE_S
            expected.append(free - at)
        late = rows.ttft_s - expected
        assert late.min() > -0.01
        assert late.median() < 0.05  # of requests over HTTP
    sent = np.sort([at for at, _ in queue.asked])[-30:]
    off = (sent - sent[0]) - (rows.arrival_s - rows.arrival_s[0])
    assert np.median(np.abs(off - np.median(off))) < 0.02
    assert np.abs(off).max() < 0.5
    words = [body["messages"][0]["content"].split()[:4] for _, body in queue.asked]
    assert len({" ".join(one) for one in words}) > 0.95 * len(words)
    assert all(body["stream"] and body["model"] == "m" for _, body in queue.asked)
    assert all(body["max_tokens"] <= 128 for _, body in queue.asked)


@pytest.mark.slow
def test_an_interrupt_keeps_what_there_is(tmp_path):
    with serving(Queue(), MODELS) as url:
        command = ["record", "--url", url, "--load", "0.2", "--requests", "400", "--out", str(tmp_path / "some.csv")]
        command = [sys.executable, "-u", "-m", "artifact", *command]
        lines = []
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as done:
            for line in done.stderr:
                lines.append(line)
                if "it saturates" in line:
                    time.sleep(4)
                    done.send_signal(signal.SIGINT)
        assert done.returncode == 130
    assert not any("Traceback" in line for line in lines)
    assert "interrupted; what there is was written" in lines[-1]
    found = pd.read_csv(tmp_path / "some.csv")
    assert 2 <= len(found) < 200
    assert list(found) == ["arrival_s", "prompt_tokens", "output_tokens", "ttft_s"]


def failing(status):
    return lambda handler: reply(handler, {"error": {"message": "no such luck"}}, status)


@pytest.mark.parametrize(
    ("given", "told_so"),
    [
        (["--arrivals", "friday"], "no arrivals 'friday'; there are azure-code, azure-conversation"),
        (["--load", "0"], "load must be"),
        (["--load", "-0.5"], "load must be"),
        (["--load", "0.5", "0.5"], "load must be one or several different numbers"),
        (["--requests", "9"], "requests must be at least 10, got 9"),
        (["--minutes", "0"], "minutes must be"),
        (["--lengths", "novels"], "no lengths of 'novels'; there are"),
        (["--seed", "-1"], "seed must be"),
        (["--context", "9"], "context must be at least 64 tokens, got 9"),
        (["--context", "4096"], "context must be at most the server's, 512, got 4096"),
        (["--model", "other"], "has no model 'other'; it has m"),
        (["--minutes", "0.001"], "at least 10 are needed: give --minutes 0."),
    ],
)
def test_what_cannot_be_recorded_is_refused_in_one_line(tmp_path, capsys, given, told_so):
    with serving(Queue(), MODELS) as url:
        assert main(["record", "--url", url, "--out", str(tmp_path), *given]) in (1, 2)
    assert told_so in told(capsys)[-1]
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("answer", "facts", "told_so"),
    [
        (
            Queue(),
            {"/v1/models": {"data": [{"id": "a"}, {"id": "b"}]}},
            "serves 2 models; name one with --model: a, b",
        ),
        (Queue(9), MODELS, "server does not stream: 9 tokens came at once"),
        (failing(401), {}, "wants a key: set OPENAI_API_KEY"),
        (failing(500), MODELS, "no such luck"),
        (failing(404), {}, "serves 0 models; name one with --model"),
    ],
)
def test_a_server_that_cannot_be_used_gets_one_line(tmp_path, capsys, answer, facts, told_so):
    with serving(answer, facts) as url:
        some = ["--load", "0.9", "--requests", "10"]
        assert main(["record", "--url", url, "--out", str(tmp_path), *some]) == 1
    lines = told(capsys)
    assert len(lines) == 1
    assert told_so in lines[0]


def test_a_server_that_is_not_there_gets_one_line(tmp_path, capsys):
    assert main(["record", "--url", f"http://127.0.0.1:{free_port()}", "--out", str(tmp_path)]) == 1
    (line,) = told(capsys)
    assert "cannot be reached" in line


def test_the_key_of_the_environment_is_sent_and_never_shown(tmp_path, capsys, monkeypatch):
    key = "sk-a-key-that-must-not-appear"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    seen = []

    def refuse(handler):
        seen.append(handler.headers.get("Authorization"))
        reply(handler, {"error": {"message": f"the key {key} is not known"}}, 401)

    with serving(refuse) as url:
        assert main(["record", "--url", f"{url}/v1", "--model", "m", "--out", str(tmp_path)]) == 1
    assert f"Bearer {key}" in seen
    assert key not in json.dumps(told(capsys))


def test_patterns_are_known_by_their_written_names():
    names = {"azure-conversation": "azure-conv", "Mooncake conversation": "mooncake-conv", "azure_code": "azure-code"}
    for written, name in (names | {"servegen-r1": "servegen-r1"}).items():
        assert recorder.Plan(written, (0.5,)).arrivals == name


def test_files_are_named_by_their_load(tmp_path):
    plan = recorder.Plan("azure-code", (0.5, 0.9), out=tmp_path / "mine.csv")
    assert [plan.path(load).name for load in plan.loads] == ["mine-load-0.5.csv", "mine-load-0.9.csv"]
    assert recorder.Plan("azure-code", (0.5,), out=tmp_path / "mine.csv").path(0.5) == tmp_path / "mine.csv"
    with pytest.raises(InputError, match="load must be"):
        recorder.Plan("azure-code", ())


@pytest.mark.slow
def test_a_llama_cpp_server_is_used_natively_within_its_context(tmp_path, capsys):
    with LocalServer(smollm2_path(), n_ctx=256, api_key="sk-local") as local:
        asked = ["record", "--url", f"{local.url}/v1", "--load", "0.8", "--requests", "12", "--longest", "6"]
        assert main([*asked, "--out", str(tmp_path / "one.csv")]) == 1
        assert "OPENAI_API_KEY" in told(capsys)[-1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OPENAI_API_KEY", "sk-local")
            assert main([*asked, "--out", str(tmp_path / "one.csv")]) == 0
    found = readers.read(tmp_path / "one.csv")
    assert (len(found), found.failed) == (12, 0)
    assert found.prompt_tokens.max() + found.output_tokens.max() <= 256
    assert found.prompt_tokens.max() > 200  # Azure's prompts are longer, so that they are cut
