"""Readers of other tools' records, on small samples in the form that each tool writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifact.errors import ArtifactError
from artifact.pair.readers import Requests, read

N = 12
BEGAN_S = 1_790_000_000.0
LACKS = (
    "none of the forms GuideLLM, vLLM, AIPerf, LiteLLM, csv; "
    "as a csv it lacks the columns arrival_s, prompt_tokens, ttft_s and has "
)


def csv_rows(n: int = N) -> list[list[object]]:
    return [[index * 0.5, 20 + index, 0.2 + index / 100] for index in range(n)]


def csv_text(rows: list[list[object]], header: str = "arrival_s,prompt_tokens,ttft_s") -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def vllm_run(n: int = N) -> dict[str, Any]:
    """`vllm bench serve --save-detailed`: lists over all requests; the second one failed."""
    run: dict[str, Any] = {"date": "20260921-150405", "backend": "openai-chat", "model_id": "m", "num_prompts": n}
    run |= {"request_rate": "inf", "burstiness": 1.0, "max_concurrency": None, "completed": n - 1, "failed": 1}
    run |= {"mean_ttft_ms": 250.0, "p99_ttft_ms": 300.0}
    run["input_lens"] = [20 + index for index in range(n)]
    run["output_lens"] = [0 if index == 1 else 16 for index in range(n)]
    run["ttfts"] = [0.0 if index == 1 else 0.2 + index / 100 for index in range(n)]
    run["itls"] = [[] if index == 1 else [0.01] * 15 for index in range(n)]
    run["start_times"] = [353399.725 + index * 0.5 for index in range(n)]
    run["queue_times"] = [0.0] * n
    run["generated_texts"] = ["one \u2028 line"] * n
    run["errors"] = ["Service Unavailable" if index == 1 else "" for index in range(n)]
    return run


def guidellm_run(n: int = N, kind: str = "constant", **load: float) -> dict[str, Any]:
    def request(index: int) -> dict[str, Any]:
        start = BEGAN_S + index * 0.5
        timings = {"targeted_start": start, "request_start": start, "first_token_iteration": start + 0.2}
        return {
            "type_": "generative_request_stats",
            "request_id": f"r{index}",
            "output": "text",
            "info": {"request_id": f"r{index}", "status": "completed", "timings": timings},
            "input_metrics": {"text_tokens": 20 + index},
            "output_metrics": {"text_tokens": 16},
            "request_start_time": start,
            "request_end_time": start + 1.0,
            "prompt_tokens": 20 + index,
            "output_tokens": 16,
            "time_to_first_token_ms": 200.0 + index * 10,
        }

    return {
        "type_": "generative_benchmark",
        "config": {"run_index": 0, "strategy": {"type_": kind} | load},
        "metrics": {"request_totals": {"successful": n, "incomplete": 0, "errored": 1, "total": n + 1}},
        "requests": {
            "successful": [request(index) for index in reversed(range(n))],  # in order of completion
            "incomplete": [],
            "errored": [{"type_": "generative_request_stats", "request_id": "e"}],
            "total": None,
        },
    }


def guidellm_report(*runs: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"version": 1, "guidellm_version": "0.8.1"}, "args": {}, "benchmarks": [*runs]}


def aiperf_record(index: int, **changes: Any) -> dict[str, Any]:
    start = int(BEGAN_S) * 10**9 + index * 500_000_000
    metadata = {
        "session_num": index,
        "x_request_id": f"r{index}",
        "turn_index": 0,
        "request_start_ns": start,
        "request_ack_ns": start + 1,
        "request_end_ns": start + 10**9,
        "worker_id": "worker_1",
        "benchmark_phase": "profiling",
        "was_cancelled": False,
        "cancellation_time_ns": None,
    }
    metrics = {
        "input_sequence_length": {"value": 20 + index, "unit": "tokens"},
        "time_to_first_token": {"value": 200.0 + index * 10, "unit": "ms"},
        "output_sequence_length": {"value": 16, "unit": "tokens"},
        "inter_token_latency": {"value": 10.0, "unit": "ms"},
    }
    return {"metadata": metadata, "metrics": metrics, "error": None} | changes


def aiperf_error(index: int) -> dict[str, Any]:
    error = {"code": 499, "type": "RequestCancellationError", "message": "cancelled"}
    return aiperf_record(index, metrics={"error_isl": {"value": 550, "unit": "tokens"}}, error=error)


def clock(seconds: float) -> str:
    return str(np.datetime64(0, "ms") + np.timedelta64(round((BEGAN_S + seconds) * 1e3), "ms"))


def spend_row(index: int, **changes: Any) -> dict[str, Any]:
    start = index * 0.5
    row = {
        "request_id": f"chatcmpl-{index}",
        "call_type": "acompletion",
        "spend": 0.001,
        "total_tokens": 36 + index,
        "prompt_tokens": 20 + index,
        "completion_tokens": 16,
        "startTime": clock(start) + "Z",
        "endTime": clock(start + 1) + "Z",
        "completionStartTime": clock(start + 0.2 + index / 100) + "Z",
        "model": "openai/m",
        "model_group": "m",
        "metadata": {"status": "success"},
        "cache_hit": "None",
        "status": "success",
    }
    return row | changes


def spend_rows() -> list[dict[str, Any]]:
    """Newest first, with a failure, an answer in one piece, one from the cache, and an embedding of another model."""
    failed = clock(1.1) + "Z"
    rest = [
        spend_row(1, status="failure", startTime=failed, endTime=failed, completionStartTime=failed, prompt_tokens=0),
        spend_row(2, completionStartTime=clock(2.0) + "Z"),
        spend_row(3, cache_hit="True"),
        spend_row(4, model_group="e", completion_tokens=0, completionStartTime=None),
    ]
    return [*rest, *(spend_row(index) for index in reversed(range(N)))]


def made(folder: Path, content: object) -> Path:
    path = folder / "record.data"  # a name that tells nothing
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def refused(folder: Path, content: object, part: str | None = None) -> str:
    path = made(folder, content)
    with pytest.raises(ArtifactError) as caught:
        read(path, part)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def check(found: Requests, form: str, skipped: tuple[int, ...] = ()) -> None:
    index = np.array([one for one in range(N) if one not in skipped])
    assert found.form == form
    np.testing.assert_allclose(found.arrival_s, index * 0.5, atol=1e-6)
    np.testing.assert_allclose(found.ttft_s, 0.2 + index / 100, rtol=1e-9)
    assert found.prompt_tokens.tolist() == (20 + index).tolist()
    assert found.prompt_tokens.dtype == np.int64
    assert len(found) == index.size


def test_csv_with_spaces_after_commas_and_a_mark_of_byte_order(tmp_path: Path) -> None:
    text = "\ufeff" + csv_text(csv_rows()).replace(",", ", ")
    found = read(made(tmp_path, text))
    check(found, "csv")
    assert np.isnan(found.output_tokens).all()
    assert found.failed == 0
    assert found.began_s is None
    assert found.notes == ("12 requests: with fewer than 100, the P99 is the slowest of them",)


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_csv_of_other_separators_and_line_ends(tmp_path: Path, separator: str, end: str) -> None:
    path = tmp_path / "record"
    path.write_bytes(csv_text(csv_rows()).replace(",", separator).replace("\n", end).encode())
    check(read(path), "csv")


def test_csv_counts_failures_sorts_and_begins_with_the_first_request(tmp_path: Path) -> None:
    rows = [*csv_rows()[::-1], [-0.0, 5, ""]]
    rows = [[float(str(row[0])) + 7, *row[1:], 3] for row in rows]
    rows[0][3] = ""
    found = read(made(tmp_path, csv_text(rows, "arrival_s,prompt_tokens,ttft_s,output_tokens")))
    check(found, "csv")
    assert found.failed == 1
    assert found.output_tokens[:-1].tolist() == [3.0] * (N - 1)
    assert np.isnan(found.output_tokens[-1])
    assert "the times were not in order and have been sorted" in found.notes


def test_a_request_that_lacks_a_value_is_left_out_with_a_note(tmp_path: Path) -> None:
    rows = csv_rows()
    rows[3][1] = rows[4][0] = ""
    found = read(made(tmp_path, csv_text(rows)))
    assert len(found) == N - 2
    assert "left out: 2 without arrival or prompt tokens" in found.notes


def test_enough_requests_have_no_notes_and_milliseconds_are_suspected(tmp_path: Path) -> None:
    assert read(made(tmp_path, csv_text(csv_rows(100)))).notes == ()
    rows = [[row[0], row[1], 250] for row in csv_rows(100)]
    (note,) = read(made(tmp_path, csv_text(rows))).notes
    assert "250 seconds" in note
    (note,) = read(made(tmp_path, csv_text([[*row[:2], 0.004] for row in csv_rows(100)]))).notes
    assert note == "the median TTFT is 0.004 seconds; check that the first chunk has text"


def test_ten_requests_are_read_and_nine_are_not(tmp_path: Path) -> None:
    assert len(read(made(tmp_path, csv_text(csv_rows(10))))) == 10
    message = refused(tmp_path, csv_text([*csv_rows(9), [9, 9, ""]]))
    assert message == "requests with a first token: 9, at least 10 are needed; failed: 1"


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        (0, -1, "arrival_s must be finite and non-negative seconds, got -1.0"),
        (0, "2026-09-21T15:04:05Z", "arrival_s must be a number, got '2026-09-21T15:04:05Z' in request 4"),
        (0, "inf", "arrival_s must be finite and non-negative seconds, got inf"),
        (1, 0, "prompt_tokens must be whole numbers from 1 to 2147483647, got 0.0"),
        (1, 2.5, "prompt_tokens must be whole numbers of at least 1, got 2.5"),
        (1, "many", "prompt_tokens must be a number, got 'many' in request 4"),
        (2, -0.3, "ttft_s must be finite and non-negative seconds, got -0.3"),
        (2, 0, "ttft_s must be above 0 seconds, got 0; leave it empty where no token came"),
        (2, "0.3 s", "ttft_s must be a number, got '0.3 s' in request 4"),
        (2, '"0,3"', "ttft_s must be a number with a decimal point, got '0,3' in request 4"),
        (2, "1_0", "ttft_s must be a number, got '1_0' in request 4"),
        (2, "\u0663", "ttft_s must be a number, got '\u0663' in request 4"),
        (0, 1.79e12, "arrival_s must be seconds, got 1.79e+12, which looks like milliseconds"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, column: int, value: object, expected: str) -> None:
    rows = csv_rows()
    rows[3][column] = value
    assert refused(tmp_path, csv_text(rows)) == expected


@pytest.mark.parametrize("value", [0, -4, 1.5])
def test_output_tokens_are_at_least_one_or_unknown(tmp_path: Path, value: float) -> None:
    text = csv_text([[*row, value] for row in csv_rows()], "arrival_s,prompt_tokens,ttft_s,output_tokens")
    assert refused(tmp_path, text).startswith("output_tokens must be whole numbers")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        ("arrival_s,prompt_tokens,ttft_s\n", "a csv without rows; columns arrival_s, prompt_tokens, ttft_s"),
        ("arrival_s,prompt_tokens\n1,2\n", "no values of ttft_s"),
        (
            "arrival_s,prompt_tokens,ttft_s\n1,2,3,4\n",
            "the rows of the csv have more fields than its first line names",
        ),
        (
            '{"benchmarks": [\n{"config"',
            "damaged JSON, perhaps cut off (Expecting ':' delimiter: line 2 column 10 (char 26))",
        ),
        ("[" * 100_000, "JSON that is nested too deep"),
        ("arrival_s,prompt_tokens,ttft_s,ttft_s\n1,2,3,4\n", "the csv has 2 columns ttft_s"),
        ("{}", LACKS + "none"),
        ('[{"a\\nb": 1, "\\ud800": 2}]', LACKS + "a b,"),
        ("[]", "JSON without a list of objects"),
        ("[1, 2]", "JSON without a list of objects"),
        ("time;latency\n1;2\n", LACKS + "latency, time"),
    ],
)
def test_files_of_no_known_form(tmp_path: Path, content: str, expected: str) -> None:
    assert refused(tmp_path, content) == expected


def test_broken_csv_missing_file_folder_and_binary(tmp_path: Path) -> None:
    assert refused(tmp_path, csv_text([*csv_rows(), [1, 2, 3, 4]])).startswith("neither JSON nor a csv (")
    (tmp_path / "binary").write_bytes(b"\x1f\x8b\xff")
    for name, expected in (("none", "No such file"), (".", "Is a directory"), ("binary", "no text in UTF-8")):
        with pytest.raises(ArtifactError, match=expected):
            read(tmp_path / name)


def test_vllm_skips_failed_requests(tmp_path: Path) -> None:
    found = read(made(tmp_path, vllm_run()))
    check(found, "vLLM", skipped=(1,))
    assert found.failed == 1
    assert set(found.output_tokens) == {16.0}
    assert found.began_s is None


def test_vllm_result_without_details_or_start_times(tmp_path: Path) -> None:
    run = vllm_run()
    for name in ("start_times", "input_lens", "output_lens", "ttfts"):
        del run[name]
        message = refused(tmp_path, run)
        assert name in message
        assert message.endswith("; record with a vLLM of 2026 or later and with --save-detailed")
    run = vllm_run()
    run["ttfts"].pop()
    assert "one entry per request" in refused(tmp_path, run)


def test_vllm_appended_results_need_a_choice(tmp_path: Path) -> None:
    text = json.dumps(vllm_run()) + "\n" + json.dumps(vllm_run() | {"request_rate": 2.0})  # no line end at the end
    assert refused(tmp_path, text) == "2 runs or models; name the part to read, one of: 1-rate-inf, 2-rate-2.0"
    check(read(made(tmp_path, text), part="2-rate-2.0"), "vLLM", skipped=(1,))


def test_guidellm_report(tmp_path: Path) -> None:
    found = read(made(tmp_path, guidellm_report(guidellm_run())))
    check(found, "GuideLLM")
    assert found.failed == 1
    assert found.began_s == BEGAN_S
    assert set(found.output_tokens) == {16.0}


def test_guidellm_sweep_needs_a_choice_and_a_sample_is_noted(tmp_path: Path) -> None:
    run = guidellm_run(kind="poisson", rate=2.5)
    run["metrics"]["request_totals"] |= {"successful": 40, "incomplete": 2}
    report = guidellm_report(guidellm_run(0, "synchronous"), run, guidellm_run(kind="concurrent", streams=8))
    assert refused(tmp_path, report).endswith("one of: 1-synchronous, 2-poisson@2.5, 3-concurrent@8")
    assert refused(tmp_path, report, "3").startswith("no part '3'; name the part")
    found = read(made(tmp_path, report), "2-poisson@2.5")
    assert found.notes[:2] == ("only 12 of 40 requests were recorded", "left out: 2 cut off by the end of the run")
    assert "requests with a first token: 0" in refused(tmp_path, report, "1-synchronous")


def test_guidellm_first_token_that_is_no_reasoning_and_none_at_all(tmp_path: Path) -> None:
    run = guidellm_run()
    for request in run["requests"]["successful"]:
        request["time_to_first_output_token_ms"] = request.pop("time_to_first_token_ms")
        request["time_to_first_token_ms"] = 1.0
    check(read(made(tmp_path, guidellm_report(run))), "GuideLLM")
    for request in run["requests"]["successful"]:
        request |= {"time_to_first_output_token_ms": None, "time_to_first_token_ms": None, "prompt_tokens": None}
    message = refused(tmp_path, guidellm_report(run))
    assert message == "no values of prompt_tokens, time_to_first_token_ms; the requests must be streamed"


def test_aiperf_records(tmp_path: Path) -> None:
    warm = aiperf_record(0)
    warm["metadata"]["benchmark_phase"] = "warmup"
    records = [warm, aiperf_error(N), *(aiperf_record(index) for index in reversed(range(N)))]
    records.append(aiperf_record(N + 1, metrics=None, error={"code": 500, "type": "E", "message": "m"}))
    found = read(made(tmp_path, lines(records)))
    check(found, "AIPerf")
    assert found.failed == 2
    assert found.began_s == BEGAN_S
    assert found.notes[0] == "left out: 1 of the warm-up"


def test_aiperf_cancelled_reasoning_unit_and_no_stream(tmp_path: Path) -> None:
    records = [aiperf_record(index) for index in range(N)]
    for record in records:
        metrics = record["metrics"]
        metrics["time_to_first_output_token"] = metrics["time_to_first_token"]
        metrics["time_to_first_token"] = {"value": 1.0, "unit": "ms"}
    records[2]["metadata"]["was_cancelled"] = True
    del records[3]["metrics"]["time_to_first_output_token"]  # only reasoning
    found = read(made(tmp_path, lines(records)))
    check(found, "AIPerf", skipped=(2, 3))
    assert found.failed == 2
    records[4]["metrics"]["time_to_first_output_token"]["unit"] = "ns"
    assert refused(tmp_path, lines(records)) == "time_to_first_output_token must be in ms, got ms, ns"
    for record in records:
        record["metrics"] = {"input_sequence_length": {"value": 9, "unit": "tokens"}}
    assert refused(tmp_path, lines(records)) == "no values of time_to_first_token; record with --streaming"


def test_a_record_that_was_cut_and_one_of_another_shape(tmp_path: Path) -> None:
    text = lines([aiperf_record(index) for index in range(N)])
    assert refused(tmp_path, text[:-20]).startswith(f"line {N} is no JSON")
    assert refused(tmp_path, [{"metrics": []}]).startswith("not what AIPerf writes (KeyError")


@pytest.mark.parametrize("write", [lambda rows: rows, lambda rows: {"data": rows, "total": len(rows)}, lines])
def test_litellm_rows_as_json(tmp_path: Path, write: Callable[[list[dict[str, Any]]], object]) -> None:
    found = read(made(tmp_path, write(spend_rows())))
    check(found, "LiteLLM")
    assert found.failed == 1
    assert found.began_s == BEGAN_S
    assert found.notes[0] == "left out: 2 not streamed or from LiteLLM's cache"


def test_litellm_rows_as_csv_of_the_database(tmp_path: Path) -> None:
    rows = [
        {name: str(value).replace("T", " ").rstrip("Z") if name.endswith("Time") else value for name, value in items}
        for items in (row.items() for row in spend_rows())
    ]
    rows = [row | {"metadata": '"{""status"": ""success"", ""tags"": [1, 2]}"'} for row in rows]
    rows[3]["completionStartTime"] = ""
    found = read(made(tmp_path, csv_text([[*row.values()] for row in rows], ",".join(rows[0]))))
    check(found, "LiteLLM")
    assert found.failed == 1
    assert found.began_s == BEGAN_S
    assert set(found.output_tokens) == {16.0}


def test_litellm_times_in_unix_seconds(tmp_path: Path) -> None:
    rows = [
        spend_row(
            index, startTime=BEGAN_S + index * 0.5, completionStartTime=BEGAN_S + index * 0.51 + 0.2, endTime=1.0
        )
        for index in range(N)
    ]
    found = read(made(tmp_path, lines(rows)))
    np.testing.assert_allclose(found.ttft_s, 0.2 + np.arange(N) / 100, atol=1e-6)  # a double holds no more of 1.8e9
    assert found.began_s == BEGAN_S


def test_a_message_is_one_line_whatever_the_names_are(tmp_path: Path) -> None:
    rows = [spend_row(index, model_group=f"a\n{index % 2}") for index in range(N)]
    assert refused(tmp_path, rows) == "2 runs or models; name the part to read, one of: a 0, a 1"


def test_litellm_models_times_and_columns(tmp_path: Path) -> None:
    rows = [*spend_rows(), *(spend_row(index, model_group=None, model="other") for index in range(N))]
    assert refused(tmp_path, rows) == "2 runs or models; name the part to read, one of: m, other"
    check(read(made(tmp_path, rows), "other"), "LiteLLM")
    rows = [spend_row(index) for index in range(N)]
    rows[5]["startTime"] = "yesterday"
    assert refused(tmp_path, rows) == "startTime must be an ISO 8601 time, got 'yesterday'"
    rows[5]["startTime"] = 1.79e12
    assert refused(tmp_path, rows) == "startTime has a time outside the years 1678 to 2261"
    rows = [spend_row(index, completionStartTime=None) for index in range(N)]
    assert refused(tmp_path, rows) == "no values of completionStartTime"
    rows = [row | {"completionStartTime": row["endTime"], "prompt_tokens": 9} for row in rows]
    assert refused(tmp_path, rows) == (
        "requests with a first token: 0, at least 10 are needed; failed: 0; "
        "left out: 12 not streamed or from LiteLLM's cache"
    )


SAMPLES: list[Callable[[], Any]] = [
    vllm_run,
    lambda: guidellm_report(guidellm_run()),
    lambda: [aiperf_record(index) for index in range(N)],
    spend_rows,
    lambda: [dict(zip(("arrival_s", "prompt_tokens", "ttft_s"), row, strict=True)) for row in csv_rows()],
]


def damaged(value: Any, rng: np.random.Generator) -> None:
    """Replaces or deletes one entry somewhere in the value."""
    while True:
        keys = [*value] if isinstance(value, dict) else [*range(len(value))]
        key = keys[rng.integers(len(keys))]
        if rng.random() < 0.5 and isinstance(value[key], dict | list) and value[key]:
            value = value[key]
            continue
        if rng.random() < 0.2:
            del value[key]
        else:
            value[key] = [None, "text", -1, 0, 1e400, True, [], {}, [1], {"a": 1}, 10**400][rng.integers(11)]
        return


@pytest.mark.parametrize("sample", SAMPLES)
def test_damage_ends_in_one_line_or_in_requests(tmp_path: Path, sample: Callable[[], Any]) -> None:
    rng, messages = np.random.default_rng(0), []
    for _ in range(200):
        content = sample()
        for _ in range(rng.integers(1, 4)):
            damaged(content, rng)
        try:
            found = read(made(tmp_path, content))
        except ArtifactError as error:
            messages.append(str(error))
            continue
        assert len(found) >= 10
        assert (found.ttft_s > 0).all()
        assert (np.diff(found.arrival_s) >= 0).all()
    assert 0 < len(messages) < 200
    assert not any("\n" in message for message in messages)
