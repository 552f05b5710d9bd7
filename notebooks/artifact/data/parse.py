"""Raw trace files to tidy tables: one row per request, in seconds and tokens, with uniform names.

`load(source)` fetches the missing files and parses them; `SOURCES` has the files and the parser of each source. Rows
that the publisher marked as failed, or that lack some of the file's columns, are dropped; each parser says which.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from artifact.data.fetch import fetch
from artifact.errors import TraceError
from disco_core.errors import InputError

# One name for each service of thefastest; all others have their publisher's name.
FAMILIES = {
    r"llama-?v?3-70b.*": "llama-3-70b",
    r"command-r": "command-r",
    r"command-r-plus": "command-r-plus",
    r"gpt-4-turbo": "gpt-4-turbo",
}
VENDORS = {"gpt-": "openai", "command-": "cohere", "claude-": "anthropic"}  # of names without a host
HOSTS = {
    "together.xyz": "together.ai",
    "togethercomputer": "together.ai",
    "octoai.run": "octo.ai",
    "cloudflare": "cloudflare.com",
}


def deepseek(paths: Sequence[Path]) -> pd.DataFrame:
    """deepseek-chat, one prompt: time (the client's local clock), ttft_s, total_s, out_tokens.

    Later rows of the file belong to another experiment and have other columns: only rows with exactly the header's
    columns, all of them numbers, are used.
    """
    names = ["timestamp", "first_token_latency_ms", "total_latency_ms", "tokens_per_second", "total_tokens"]
    with _reading(paths[0]):
        rows = [line.split(",") for line in paths[0].read_text(encoding="utf-8").splitlines()]
    _expect(paths[0], rows[:1] == [names], f"a first line {','.join(names)}")
    frame = pd.DataFrame([row for row in rows[1:] if len(row) == len(names)], columns=names)
    numbers = frame[names[1:]].apply(pd.to_numeric, errors="coerce")
    times = pd.to_datetime(frame["timestamp"], errors="coerce")
    tidy = pd.DataFrame(
        {
            "time": times,
            "ttft_s": numbers["first_token_latency_ms"] / 1e3,
            "total_s": numbers["total_latency_ms"] / 1e3,
            "out_tokens": numbers["total_tokens"],
        }
    )
    return _measured(tidy, paths[0]).astype({"out_tokens": "int64"})


def thefastest(paths: Sequence[Path]) -> pd.DataFrame:
    """Endpoints called from three regions: time (UTC), region, host, model, ttft_s.

    A file that is not JSON (the publisher's job wrote a log instead) is skipped; runs repeated in later files, and
    calls without a first token, are dropped; renamed hosts and models get one name.
    """
    runs = [run for path in paths for run in _runs(path)]
    _expect(paths[0], bool(runs), f"a JSON list of runs in at least one of {len(paths)} files")
    with _reading(paths[0]):
        rows = [
            {"time": run["time"], "region": run["region"], "name": call["model"], "ttft_s": call["ttft"]}
            for run in runs
            for call in run["results"]
        ]
    frame = pd.DataFrame(rows).drop_duplicates(["time", "region", "name"])
    frame["time"] = pd.to_datetime(frame["time"], format="ISO8601")
    names = [host_and_model(name) for name in frame.pop("name")]
    frame.insert(2, "host", [host for host, _ in names])
    frame.insert(3, "model", [model for _, model in names])
    return _measured(frame, paths[0]).sort_values(["time", "region", "host", "model"], ignore_index=True)


def host_and_model(name: str) -> tuple[str, str]:
    """Host and model of a published endpoint name: `together.xyz/Llama-3-70b-chat-hf` -> together.ai, llama-3-70b."""
    host, _, model = name.lower().rpartition("/")
    if not host:
        host = next((vendor for start, vendor in VENDORS.items() if model.startswith(start)), "")
    host = re.sub(r"^(api|text)\.", "", host)
    host = re.sub(r"^fixie-(.+)\.azure$", r"azure.\1", host)
    for pattern, family in FAMILIES.items():
        if re.fullmatch(pattern, model):
            model = family
    return HOSTS.get(host, host), model


def latencylab(paths: Sequence[Path]) -> pd.DataFrame:
    """GPT endpoints with prompts of 17 lengths: endpoint, length (characters), ttft_s; failed requests dropped."""
    with _reading(paths[0]):
        wide = pd.read_csv(paths[0])
    endpoints = [column.removesuffix(" success") for column in wide if column.endswith(" success")]
    _expect(paths[0], bool(endpoints), "columns named '<endpoint> success'")
    with _reading(paths[0]):
        parts = [
            pd.DataFrame(
                {
                    "endpoint": endpoint,
                    "length": wide[f"{endpoint} input_characters"],
                    "ttft_s": pd.to_numeric(wide[f"{endpoint} first_token_time_seconds"], errors="coerce"),
                }
            )[wide[f"{endpoint} success"].astype(str) == "True"]
            for endpoint in endpoints
        ]
    return _measured(pd.concat(parts, ignore_index=True), paths[0])


def llmperf(paths: Sequence[Path]) -> pd.DataFrame:
    """LLaMA-2 on eight services: endpoint, length (prompt tokens), ttft_s; requests with an error code dropped."""
    parts = []
    for path in paths:
        with _reading(path):
            calls = pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))
            calls = calls[calls["error_code"].isna()]
            parts.append(
                pd.DataFrame(
                    {"endpoint": path.stem, "length": calls["number_input_tokens"], "ttft_s": calls["ttft_s"]}
                )
            )
    return _measured(pd.concat(parts, ignore_index=True), paths[0])


def azure(paths: Sequence[Path]) -> pd.DataFrame:
    """An hour of a production service: time, prompt_tokens, output_tokens."""
    with _reading(paths[0]):
        frame = pd.read_csv(paths[0])
    names = {"TIMESTAMP": "time", "ContextTokens": "prompt_tokens", "GeneratedTokens": "output_tokens"}
    _expect(paths[0], list(frame) == list(names), f"columns {','.join(names)}")
    frame = frame.rename(columns=names)
    with _reading(paths[0]):
        frame["time"] = pd.to_datetime(frame["time"])
        return frame.astype({"prompt_tokens": "int64", "output_tokens": "int64"})


def alpaca(paths: Sequence[Path]) -> pd.DataFrame:
    """Instructions and reference answers: prompt (instruction, blank line, input if any), output."""
    with _reading(paths[0]):
        items = json.loads(paths[0].read_text(encoding="utf-8"))
        prompts = ["\n\n".join(part for part in (item["instruction"], item["input"]) if part) for item in items]
        return _texts({"prompt": prompts, "output": [item["output"] for item in items]}, paths[0])


def questions(paths: Sequence[Path]) -> pd.DataFrame:
    """Benchmark questions, one JSON object a line: prompt (the first turn)."""
    with _reading(paths[0]):
        lines = paths[0].read_text(encoding="utf-8").split("\n")
        turns = [json.loads(line)["turns"][0] for line in lines if line.strip()]
        return _texts({"prompt": [turn if isinstance(turn, str) else turn["content"] for turn in turns]}, paths[0])


def choices(paths: Sequence[Path]) -> pd.DataFrame:
    """Questions of multiple choice, one JSON object a line: question, options (a list), correct (index of one).

    A question with several correct options is dropped.
    """
    with _reading(paths[0]):
        items = [json.loads(line) for line in paths[0].read_text(encoding="utf-8").split("\n") if line.strip()]
        rows = [(one["centerpiece"], one["options"], *one["correct_options_idx"]) for one in items]
        texts = all(isinstance(text, str) for row in rows for text in (row[0], *row[1]))
    rows = [row for row in rows if len(row) == 3]
    _expect(paths[0], texts and bool(rows), "questions with options, at least one with one correct option")
    _expect(paths[0], all(row[2] in range(len(row[1])) for row in rows), "the index of an option as correct")
    return pd.DataFrame(rows, columns=["question", "options", "correct"])


def phones(paths: Sequence[Path]) -> pd.DataFrame:
    """Phones: device, engine, model, prefill_tokens, decode_tokens, tokens per second and mJ per token of each."""
    columns = {
        "prefill_len": "prefill_tokens",
        "decode_len": "decode_tokens",
        "prefill_token_speed": "prefill_tok_per_s",
        "decode_token_speed": "decode_tok_per_s",
        "prefill_energy": "prefill_mj_per_tok",
        "decode_energy": "decode_mj_per_tok",
    }
    parts = []
    for path in paths:
        with _reading(path):
            frame = pd.read_csv(path)[list(columns)].rename(columns=columns)
            engine, model = path.parent.name.removesuffix("-CPU").split("-", 1)
            names = {"device": path.parent.parent.name, "engine": engine, "model": model}
            parts.append(frame.assign(**names)[[*names, *columns.values()]])
    tokens = {"prefill_tokens": "int64", "decode_tokens": "int64"}
    return pd.concat(parts, ignore_index=True).astype(tokens)


SOURCES: dict[str, tuple[str, Callable[[Sequence[Path]], pd.DataFrame]]] = {
    "deepseek": ("tom-doerr/*", deepseek),
    "thefastest": ("fixie-ai/*", thefastest),
    "latencylab": ("ScaleVoice/*", latencylab),
    "llmperf": ("ray-project/*", llmperf),
    "azure-code": ("Azure/*_code.csv", azure),
    "azure-conv": ("Azure/*_conv.csv", azure),
    "alpaca": ("hiyouga/*", alpaca),
    "mt-bench": ("lm-sys/FastChat/*", questions),
    "arena-hard": ("lm-sys/arena-hard-auto/*", questions),
    "phones": ("huangzhengxiang/*", phones),
    "ARC-Easy": ("brucewlee/*/arc-easy/test.json", choices),
    "PIQA": ("brucewlee/*/piqa/test.json", choices),
    "OpenBookQA": ("brucewlee/*/openbookqa/test.json", choices),
}


@cache
def load(source: str) -> pd.DataFrame:
    """The tidy table of a source, fetched if necessary; it is cached and must not be changed."""
    if source not in SOURCES:
        raise InputError(f"no source {source!r}; there are {', '.join(SOURCES)}")
    files, parser = SOURCES[source]
    return parser(fetch(files))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise TraceError(f"{path}: not the published format ({type(error).__name__}: {error})") from error


def _expect(path: Path, condition: bool, expected: str) -> None:
    if not condition:
        raise TraceError(f"{path}: not the published format, expected {expected}")


def _runs(path: Path) -> list[dict[str, Any]]:
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return []
    return runs if isinstance(runs, list) else []


def _texts(columns: dict[str, list[str]], path: Path) -> pd.DataFrame:
    _expect(path, bool(columns["prompt"]), "at least one prompt")
    return pd.DataFrame(columns)


def _measured(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The rows without missing values whose TTFT is positive and finite."""
    complete = frame.notna().all(axis=1) & frame["ttft_s"].gt(0) & frame["ttft_s"].lt(float("inf"))
    _expect(path, bool(complete.any()), "at least one request with a first token")
    return frame[complete].reset_index(drop=True)
