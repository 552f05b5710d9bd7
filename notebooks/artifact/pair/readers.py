"""Requests that another tool recorded: arrival, lengths and time to first token (TTFT) of each.

`read(path)` tells the form from the content, not from the file's name. The forms, and the public files that define
them, read on the main branches in autumn 2026, about vLLM 0.33; records that GuideLLM 0.8.1, AIPerf 0.13.0 and
LiteLLM 1.108.7 wrote are read in the tests and compared with the log of the server that they asked:

csv       columns arrival_s, prompt_tokens, ttft_s and, if known, output_tokens, in seconds and tokens, separated by
          commas, semicolons or tabs; an empty ttft_s is a request that failed. JSON objects with these
          keys are read as well.
vLLM      the result of `vllm bench serve --save-result --save-detailed` (vllm/benchmarks/serve.py). A request failed
          if it has an error, no output or a TTFT of 0. Results from before 2026 lack start_times.
GuideLLM  benchmarks.json with report schema 1 or 2 (benchmark/schemas/report.py, schemas/base/request_stats.py)
AIPerf    profile_export.jsonl (common/models/record_models.py, docs/tutorials/working-with-profile-exports.md)
LiteLLM   rows of its proxy's table LiteLLM_SpendLogs (schema.prisma) as a csv, as JSON lines or as /spend/logs
          returns them, or the standard payloads of its logging callbacks as JSON lines; times are ISO 8601,
          in UTC where they name no zone, or UNIX seconds. An answer that was not streamed has its end as
          completionStartTime, so these are left out, and so are answers from LiteLLM's cache.

TTFT counts from the moment the tool sent the request: its own queue is not the server's. Where GuideLLM and AIPerf
know the first token that is no reasoning, that one counts; vLLM's script and LiteLLM count the first chunk, also
an empty one, so that a server that sends the role ahead of its answer seems to answer at once.

Refused with one line (ArtifactError): a file that cannot be read, an unknown form, a missing column, text or an
infinite value where a number belongs, a decimal comma, a negative time, UNIX times in milliseconds, a TTFT of 0,
tokens that are no whole number of at least 1, fewer than 10 requests with a first token, and a file of several runs
or models of which none was chosen.
Accepted with a line in `notes`: times out of order; requests that are left out because they lack a value, were not
streamed, belong to the warm-up or were cut off by the end of the run; a run of which only a sample was recorded;
fewer than 100 requests; a median TTFT above a minute, which may be milliseconds, and one below 20 ms, which may
be that of a chunk without text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from artifact.errors import ArtifactError
from artifact.pair import records
from artifact.pair.records import Row, column
from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.errors import DiscoError

FEWEST = 10  # requests with a first token; no plan is made from fewer
SCARCE = 100  # below this number the sample's P99 is its maximum
SLOW_S = 60.0  # a median TTFT above this is more likely a wrong unit
HASTY_S = 0.02  # a median TTFT below this is more likely that of a chunk without text
FAR_S = 1e11  # no UNIX time in seconds is that late
CSV = ("arrival_s", "prompt_tokens", "ttft_s")
_SPEND = ("startTime", "endTime", "completionStartTime", "prompt_tokens")
_LISTED = 12  # runs or models that a message names


@dataclass(frozen=True)
class Requests:
    """The requests of a record that got a first token, sorted by arrival; arrays of shape (n,).

    arrival_s      seconds since the first request of the record, also if that one failed
    prompt_tokens  as the tool counted them
    output_tokens  as the tool counted them; NaN where unknown
    ttft_s         time to first token in seconds, counted from the sending of the request
    failed         requests of the record without a first token
    form           csv, vLLM, GuideLLM, AIPerf or LiteLLM
    began_s        UNIX time of the first request in seconds, or None if the record has no clock
    notes          one sentence for each thing that was accepted although it limits the record
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Floats
    ttft_s: Floats
    failed: int
    form: str
    began_s: float | None
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return self.ttft_s.size


@dataclass
class _Columns:
    """Columns as the tool wrote them, NaN where it wrote nothing; `errors` are failures without a row."""

    arrival_s: Floats
    prompt_tokens: Floats
    output_tokens: Floats
    ttft_s: Floats
    failed: NDArray[np.bool_]
    clock: bool = False
    errors: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Form:
    """A form: its name, the keys one of which identifies it, its parts by name, and the columns of a part."""

    name: str
    keys: frozenset[str]
    split: Callable[[Sequence[Row]], dict[str, Any]]
    columns: Callable[[Any], _Columns]


def read(path: Path | str, part: str | None = None) -> Requests:
    """The requests in a file of one of the forms above.

    part    the run (GuideLLM, vLLM with --append-result) or the model (LiteLLM) to read, where the file has several;
            without it the error names them
    ArtifactError, one line that starts with the path, for everything that the module's text says is refused.
    """
    try:
        rows = records.load(Path(path))
        form = _form(rows)
        try:
            return _requests(form.columns(_chosen(form.split(rows), part)), form.name)
        except DiscoError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"not what {form.name} writes ({type(error).__name__}: {error})") from None
    except DiscoError as error:
        line = " ".join("".join(mark if mark.isprintable() else " " for mark in str(error)).split())
        raise ArtifactError(f"{path}: {line}") from None


def _form(rows: Sequence[Row]) -> _Form:
    keys = set().union(*rows)
    for form in _FORMS:
        if form.keys & keys:
            return form
    raise ArtifactError(
        f"none of the forms {', '.join(form.name for form in _FORMS)}; as a csv it lacks the columns "
        f"{', '.join(CSV)} and has {', '.join(sorted(map(str, keys))[:_LISTED]) or 'none'}"
    )


def _chosen(parts: dict[str, Any], part: str | None) -> Any:
    if part is None and len(parts) == 1:
        return next(iter(parts.values()))
    if part in parts:
        return parts[part]
    names = ", ".join([*parts][:_LISTED]) + (", ..." if len(parts) > _LISTED else "")
    what = f"{len(parts)} runs or models" if part is None else f"no part {part!r}"
    raise ArtifactError(f"{what}; name the part to read, one of: {names or 'none'}")


def _requests(columns: _Columns, form: str) -> Requests:
    failed = columns.failed | np.isnan(columns.ttft_s)
    partial = ~failed & (np.isnan(columns.arrival_s) | np.isnan(columns.prompt_tokens))
    answered, n_failed = np.flatnonzero(~failed & ~partial), int(failed.sum()) + columns.errors
    notes = list(columns.notes)
    if partial.any():
        notes.append(f"left out: {partial.sum()} without arrival or prompt tokens")
    if answered.size < FEWEST:
        found = f"requests with a first token: {answered.size}, at least {FEWEST} are needed"
        raise ArtifactError("; ".join([found, f"failed: {n_failed}", *notes]))
    every = checks.seconds(columns.arrival_s[~np.isnan(columns.arrival_s)], "arrival_s")
    if every.max() >= FAR_S:
        raise ArtifactError(f"arrival_s must be seconds, got {every.max():g}, which looks like milliseconds")
    order = answered[np.argsort(columns.arrival_s[answered], kind="stable")]
    ttft_s = checks.seconds(columns.ttft_s[order], "ttft_s")
    if not ttft_s.all():
        raise ArtifactError("ttft_s must be above 0 seconds, got 0; leave it empty where no token came")
    output = columns.output_tokens[order]
    if not np.isnan(output).all():
        checks.tokens(output[~np.isnan(output)], "output_tokens")
    if order.size < SCARCE:
        notes.append(f"{order.size} requests: with fewer than {SCARCE}, the P99 is the slowest of them")
    if np.median(ttft_s) > SLOW_S:
        notes.append(f"the median TTFT is {np.median(ttft_s):g} seconds; check that the unit is not milliseconds")
    if np.median(ttft_s) < HASTY_S:
        notes.append(f"the median TTFT is {np.median(ttft_s):g} seconds; check that the first chunk has text")
    return Requests(
        arrival_s=columns.arrival_s[order] - every.min(),
        prompt_tokens=checks.tokens(columns.prompt_tokens[order], "prompt_tokens"),
        output_tokens=output,
        ttft_s=ttft_s,
        failed=n_failed,
        form=form,
        began_s=float(every.min()) if columns.clock else None,
        notes=tuple(notes),
    )


def _single(rows: Sequence[Row]) -> dict[str, Any]:
    return {"all": rows}


def _csv(rows: Sequence[Row]) -> _Columns:
    records.need(rows, CSV)
    arrival_s, prompt, ttft_s = (column(rows, name) for name in CSV)
    steps = np.diff(arrival_s[~np.isnan(arrival_s)])
    notes = ["the times were not in order and have been sorted"] if (steps < 0).any() else []
    failed = np.zeros(len(rows), dtype=np.bool_)
    return _Columns(arrival_s, prompt, column(rows, "output_tokens"), ttft_s, failed, notes=notes)


def _vllm_runs(rows: Sequence[Row]) -> dict[str, Any]:
    return {f"{number}-rate-{row.get('request_rate')}": row for number, row in enumerate(rows, 1)}


def _vllm(run: Row) -> _Columns:
    names = ("start_times", "input_lens", "output_lens", "ttfts")
    records.need([run], names, "; record with a vLLM of 2026 or later and with --save-detailed")
    arrival_s, prompt, output, ttft_s = (records.numbers(run[name], name) for name in names)
    errors = run.get("errors") or [""] * ttft_s.size
    if len({arrival_s.size, prompt.size, output.size, ttft_s.size, len(errors)}) > 1:
        raise ArtifactError(f"{', '.join(names)} and errors must have one entry per request")
    failed = np.array([bool(error) for error in errors], dtype=np.bool_) | (ttft_s == 0) | (output == 0)
    return _Columns(arrival_s, prompt, output, ttft_s, failed)


def _guidellm_runs(rows: Sequence[Row]) -> dict[str, Any]:
    runs = {}
    for number, run in enumerate(rows[0]["benchmarks"], 1):
        strategy = run.get("config", {}).get("strategy", {})
        load = strategy.get("rate", strategy.get("streams"))
        kind = strategy.get("type_", strategy.get("kind", "run"))
        runs[f"{number}-{kind}" if load is None else f"{number}-{kind}@{load:.4g}"] = run
    return runs


def _guidellm(run: Row) -> _Columns:
    rows = run["requests"]["successful"] or []
    ttft = records.first_known(rows, "time_to_first_output_token_ms", "time_to_first_token_ms")
    if rows:
        records.need(rows, ("request_start_time", "prompt_tokens", ttft), "; the requests must be streamed")
    totals = run.get("metrics", {}).get("request_totals") or {}
    n, errored, cut = (
        totals.get(status, len(run["requests"].get(status) or []))
        for status in ("successful", "errored", "incomplete")
    )
    notes = [f"only {len(rows)} of {n} requests were recorded"] if n > len(rows) else []
    notes += [f"left out: {cut} cut off by the end of the run"] if cut else []
    return _Columns(
        column(rows, "request_start_time"),
        column(rows, "prompt_tokens"),
        column(rows, "output_tokens"),
        column(rows, ttft) / 1e3,
        np.zeros(len(rows), dtype=np.bool_),
        clock=True,
        errors=errored,
        notes=notes,
    )


def _aiperf(rows: Sequence[Row]) -> _Columns:
    used = [row for row in rows if row["metadata"].get("benchmark_phase") != "warmup"]
    notes = [f"left out: {len(rows) - len(used)} of the warm-up"] if len(rows) > len(used) else []
    failed = [row.get("error") is not None or row["metadata"].get("was_cancelled") is True for row in used]
    flat = [
        {**{name: metric["value"] for name, metric in (row["metrics"] or {}).items()}, **row["metadata"]}
        for row in used
    ]
    ttft = records.first_known(flat, "time_to_first_output_token", "time_to_first_token")
    if not all(failed):
        records.need(flat, ("request_start_ns", "input_sequence_length", ttft), "; record with --streaming")
    units = {row["metrics"][ttft]["unit"] for row, values in zip(used, flat, strict=True) if ttft in values}
    if units - {"ms"}:
        raise ArtifactError(f"{ttft} must be in ms, got {', '.join(sorted(map(str, units)))}")
    return _Columns(
        column(flat, "request_start_ns") / 1e9,
        column(flat, "input_sequence_length"),
        column(flat, "output_sequence_length"),
        column(flat, ttft) / 1e3,
        np.array(failed, dtype=np.bool_),
        clock=True,
        notes=notes,
    )


def _litellm_models(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows of each model; models without a streamed answer, such as embeddings, only if there is no other."""
    records.need(rows, _SPEND)
    models: dict[str, list[Row]] = {}
    for row in rows:
        name = next((str(row[key]) for key in ("model_group", "model") if records.known(row.get(key))), "unnamed")
        models.setdefault(name, []).append(row)
    streams = {name: group for name, group in models.items() if any(map(_streamed, group))}
    return streams or {"all": rows}


def _streamed(row: Row) -> bool:
    first = row.get("completionStartTime")
    cached = str(row.get("cache_hit")).lower() == "true"
    return records.known(first) and first not in (row.get("startTime"), row.get("endTime")) and not cached


def _litellm(rows: Sequence[Row]) -> _Columns:
    used = [row for row in rows if row.get("status") == "failure" or _streamed(row)]
    left = len(rows) - len(used)
    notes = [f"left out: {left} not streamed or from LiteLLM's cache"] if left else []
    start, first = (records.times(used, name) for name in ("startTime", "completionStartTime"))
    prompt, output = (column(used, name) for name in ("prompt_tokens", "completion_tokens"))
    return _Columns(
        ((start - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)).to_numpy(np.float64),
        np.where(prompt == 0, np.nan, prompt),  # 0 is the table's default, that is, unknown
        np.where(output == 0, np.nan, output),
        ((first - start) / pd.Timedelta(seconds=1)).to_numpy(np.float64),
        np.array([row.get("status") == "failure" for row in used], dtype=np.bool_),
        clock=True,
        notes=notes,
    )


_FORMS = (
    _Form("GuideLLM", frozenset({"benchmarks"}), _guidellm_runs, _guidellm),
    _Form("vLLM", frozenset({"ttfts", "mean_ttft_ms", "start_times"}), _vllm_runs, _vllm),
    _Form("AIPerf", frozenset({"metrics"}), _single, _aiperf),
    _Form("LiteLLM", frozenset({"completionStartTime", "startTime"}), _litellm_models, _litellm),
    _Form("csv", frozenset(CSV), _single, _csv),
)
