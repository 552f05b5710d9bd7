"""Parsers of the public traces, on small made files."""

import json
from pathlib import Path

import pytest

import disco_core as dc
from artifact.data import parse
from artifact.errors import TraceError


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


def test_choices_have_one_correct_option(tmp_path: Path) -> None:
    one = {"centerpiece": "Which?", "options": ["this", "that"], "correct_options_idx": [1]}
    path = made(tmp_path, "t.json", "\n".join(map(json.dumps, [one, one | {"correct_options_idx": [0, 1]}])) + "\n")
    assert parse.choices([path]).to_numpy().tolist() == [["Which?", ["this", "that"], 1]]
    with pytest.raises(TraceError, match="the index of an option"):
        parse.choices([made(tmp_path, "u.json", json.dumps(one | {"correct_options_idx": [2]}))])


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
