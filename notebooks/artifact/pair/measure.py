"""Measure a pair, or read what was recorded of its server, and store it: all steps of `make pair` before the page.

1. the values, the prompts, the device's model and a given record are checked
2. the server is probed: reachable, with the model, streaming, and how it continues an answer
3. what will be sent is said, with its cost at the prices
4. the device is measured, for at most a third of the time; never together with the server
5. the server is measured, with what time is left
6. the pair is stored; then, if asked for, prompts are answered live under the recommended plan

The device comes first, so that an interrupt among the server's requests leaves enough for a study.
"""

import math
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd

from artifact.errors import ArtifactError
from artifact.files import relative_path, write_atomic
from artifact.measure.answers import run_in_thread
from artifact.measure.machine import machine
from artifact.pair import device as devices
from artifact.pair import prompts as texts
from artifact.pair import readers, server
from artifact.pair.device import Device
from artifact.pair.pair import Pair, load
from artifact.pair.probe import Probe, probe
from artifact.pair.progress import Progress
from artifact.pair.prompts import Messages
from artifact.pair.readers import FEWEST, Requests
from artifact.pair.server import Measured
from artifact.pair.settings import CONFIRM, SERVICES, Settings, read
from disco_core.checks import Floats
from disco_core.errors import ConstraintError, InputError

T = TypeVar("T")
SEED = 0
DEVICE_SHARE = 1 / 3  # of the time for measuring
LIVE_REQUESTS = 4  # most requests of a live prompt: server only, the race, and a hand-over that starts anew


@dataclass(frozen=True)
class Load:
    """What will be sent to the server: prompts with their tokens, and when (None: one after the other).

    prompts   of the measurement
    live      of the live comparison; others than those, as far as there are enough
    """

    prompts: Sequence[tuple[Messages, int]]
    due_s: Floats | None
    live: Sequence[tuple[Messages, int]]


@dataclass(frozen=True)
class Bill:
    """The most that a load may send to the server: requests, and tokens of prompts and answers."""

    requests: int
    prompt_tokens: int
    output_tokens: int

    def cost(self, s: Settings) -> float:
        """$ at the prices, NaN without prices."""
        if s.prices is None:
            return math.nan
        return (self.prompt_tokens * s.prices.server_in + self.output_tokens * s.prices.server_out) / 1e6


def measure(settings: Mapping[str, Any], progress: Progress | None = None) -> Path:
    """The folder with the pair that these settings describe, by the names of `settings.NAMES`.

    InputError for invalid settings, ArtifactError for a server, a device or a file that cannot be used; each is one
    line. The first Ctrl-C keeps what was measured until then, the second raises KeyboardInterrupt.
    """
    s, began = read(settings), time.monotonic()
    _writable(s.out)
    prompts = texts.load(s.prompts)
    recorded = None if s.trace is None else readers.read(s.trace, s.part)
    with (
        (Progress() if progress is None else progress).catching() as progress,
        closing(devices.open_device(s.device, prompts, s.tokens)) as device,
    ):
        load_ = plan_load(s, prompts, device)
        found = None
        if s.server is not None and s.asks_server:
            found = run(probe(s.server, s.model, s.tokens, progress.say))
        announce(s, load_, found, progress)
        if device.profile is None:
            lengths = [n for _, n in load_.prompts] if recorded is None else recorded.prompt_tokens
            limit_s = s.minutes * 60 * DEVICE_SHARE
            run(devices.measure(device, prompts, lengths, limit_s, progress))
        requests, answers = recorded, None
        if requests is None:
            if progress.interrupted or found is None:
                raise ArtifactError("interrupted before the server was measured; nothing is kept")
            left_s = s.minutes * 60 - _spent(began, s, device)
            requests, answers = _measured(s, found, device, load_, left_s, progress)
        folder = _pair(s, requests, answers, device, found).store(s.out)
        _keep(s, requests)
        if s.live and found is not None and not progress.interrupted:
            _live(folder, s, found, device, load_, progress)
    return folder


def _writable(folder: Path) -> None:
    """ArtifactError if nothing can be written to the folder: said before anything is measured, not after."""
    new = not folder.exists()
    write_atomic(folder / ".try", "").unlink()
    if new:
        folder.rmdir()


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of the work; in a thread if an event loop is running already, as in a notebook."""
    result: Any = run_in_thread(cast(Any, work))  # declared for tables alone
    return cast(T, result)


def plan_load(s: Settings, prompts: Sequence[Messages], device: Device) -> Load:
    """Prompts in random order, repeated only where there are fewer than requests, and the times they are due.

    ArtifactError if none fits the device's context, InputError if RATE brings too few within MINUTES.
    """
    counted = [(prompt, device.count(prompt)) for prompt in prompts]
    context = None if device.endpoint is None else device.endpoint.context
    fitting = [one for one in counted if context is None or one[1] + s.tokens <= context]
    if not fitting:
        raise ArtifactError(
            f"no prompt fits the device's context of {context} tokens with {s.tokens} tokens of answer"
        )
    if len(fitting) < len(counted):
        device.notes.append(f"left out: {len(counted) - len(fitting)} prompts longer than the device's context")
    rng, due_s, n = np.random.default_rng(SEED), None, 0 if s.trace is not None else s.requests
    if s.rate is not None and n:
        share = 1.0 if device.endpoint is None else 1 - DEVICE_SHARE
        due_s = server.schedule(s.rate, s.arrivals, n, s.minutes * 60 * share, rng)
        n = due_s.size
        if n < FEWEST:
            raise InputError(
                f"RATE={s.rate:g} brings {n} requests in the time for the server, at least {FEWEST} are needed; "
                "raise RATE or MINUTES"
            )
    rounds = [rng.permutation(len(fitting)) for _ in range(0, n + s.live, len(fitting))]
    chosen = [fitting[int(k)] for order in rounds for k in order][: n + s.live]
    if n > len(fitting):
        device.notes.append(
            f"{n} requests were made of {len(fitting)} prompts: where the server has a prefix cache, repeated ones "
            "are faster than new ones would be"
        )
    return Load(chosen[:n], due_s, chosen[n:])


def bill(s: Settings, load_: Load) -> Bill:
    """The most that the load may send; what the probe sent is not part of it."""
    times = [1] * len(load_.prompts) + [LIVE_REQUESTS] * len(load_.live)
    lengths = [n for _, n in (*load_.prompts, *load_.live)]
    count = sum(times)
    # a hand-over sends the answer so far as a part of the prompt
    begun = s.tokens * (LIVE_REQUESTS - 2) * len(load_.live)
    return Bill(count, sum(k * n for k, n in zip(times, lengths, strict=True)) + begun, s.tokens * count)


def announce(s: Settings, load_: Load, found: Probe | None, progress: Progress) -> None:
    """Say what will be sent and what it costs; InputError if that is over `CONFIRM` dollars without YES=1."""
    if found is None:
        progress.say(f"requests are read from {s.trace}; none is sent to a server")
        return
    most, cost = bill(s, load_), bill(s, load_).cost(s)
    pace = "one after the other" if load_.due_s is None else f"at {s.rate:g} per second on average"
    if s.trace is not None:
        pace = "for the live comparison"
    progress.say(
        f"up to {most.requests} requests will be sent to the server, {pace}, with about {most.prompt_tokens} prompt "
        f"tokens and up to {most.output_tokens} generated ones (the probe sent {found.sent})"
    )
    progress.say("no prices were given: PRICE_IN, PRICE_OUT" if s.prices is None else f"cost: up to {cost:.4g} $")
    if cost > CONFIRM and not s.yes:
        raise InputError(f"measuring may cost {cost:.2f} $, which is over {CONFIRM:g} $: allow it with YES=1")


def _spent(began: float, s: Settings, device: Device) -> float:
    """Seconds of the time for measuring that the device has taken: at most its share."""
    return 0.0 if device.endpoint is None else min(time.monotonic() - began, s.minutes * 60 * DEVICE_SHARE)


def _measured(
    s: Settings, found: Probe, device: Device, load_: Load, limit_s: float, progress: Progress
) -> tuple[Requests, Measured]:
    """The server's requests; the record of all, also the failed ones, is in the folder as record.csv."""
    began_s = time.time()

    async def work() -> Measured:
        async with found.endpoint(device.count) as endpoint:
            return await server.measure(endpoint, load_.prompts, load_.due_s, s.tokens, limit_s, progress)

    result = run(work())
    path, rows = s.out / "record.csv", result.answers
    write_atomic(path, record_csv(rows))
    failed = rows["failure"][rows["ttft_s"].isna()]
    if int(rows["ttft_s"].notna().sum()) < FEWEST:
        why = result.ended or (f"the last failure: {failed.iloc[-1]}" if len(failed) else "raise MINUTES")
        raise ArtifactError(
            f"requests with a first token: {rows['ttft_s'].notna().sum()} of {result.sent}, at least {FEWEST} are "
            f"needed; {why}"
        )
    requests = readers.read(path)
    notes = [*requests.notes]
    if result.ended:
        notes.append(f"measuring ended early: {result.ended}")
    elif result.sent < len(load_.prompts):
        notes.append(f"{result.sent} of {len(load_.prompts)} requests were sent in the time there was")
    if len(failed):
        reason = failed.value_counts().index[0]
        notes.append(f"{len(failed)} of {len(rows)} requests failed, most often with: {reason}")
    return replace(requests, form="measured", began_s=began_s, notes=tuple(notes)), result


def record_csv(rows: pd.DataFrame) -> str:
    """Answers as a csv that `readers.read` takes; tokens are empty where there was no answer."""
    table = rows.assign(output_tokens=rows["output_tokens"].where(rows["output_tokens"] > 0).astype("Int64"))
    return str(table.to_csv(index=False, lineterminator="\n"))


def _pair(s: Settings, requests: Requests, result: Measured | None, device: Device, found: Probe | None) -> Pair:
    assert device.profile is not None
    notes = [*device.notes, *([] if found is None else found.notes)]
    if s.constraint is not None and s.prices is not None:
        try:
            decided = s.prices.model(device.profile).constraint
            if decided is not s.constraint:
                notes.append(f"CONSTRAINT={s.constraint.value} is not used: by the prices it is the {decided.value}")
        except ConstraintError:
            pass
    if s.prices is None:
        notes.append("no prices were given, so nothing is said of cost")
    pace = "one after the other" if s.rate is None else f"{s.arrivals or 'Poisson'} arrivals, {s.rate:g} per second"
    about = {
        "server": s.server if s.server is not None and result is not None else str(s.trace),
        "model": "" if found is None else found.model,
        "device": device.name,
        "device file": str(s.device) if isinstance(s.device, Path) else "",
        "measured": f"read from {s.trace} ({requests.form})" if result is None else f"requests {pace}",
        "tokens": str(s.tokens),
        "prompts": "the project's" if s.prompts is None else s.prompts.name,
        "continuation": "" if found is None else found.continuation,
        "constraint": "" if s.constraint is None else s.constraint.value,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": _machine(device),
    }
    rate = math.nan if result is None else result.rate
    return Pair(requests, rate, device.profile, device.trials, s.prices, about, tuple(notes))


def _machine(device: Device) -> str:
    here = machine()
    threads = f", device on {device.threads} thread{'s' * (device.threads > 1)}" if device.endpoint else ""
    return f"{here['cpu']}, {here['cores']} cores, {here['memory_gib']} GiB, {here['system']}{threads}"


def _keep(s: Settings, requests: Requests) -> None:
    """The requests as a service of one's own, if it has a name."""
    if s.name is not None:
        columns = {
            name: getattr(requests, name) for name in ("arrival_s", "prompt_tokens", "ttft_s", "output_tokens")
        }
        table = pd.DataFrame(columns)
        table["output_tokens"] = table["output_tokens"].astype("Int64")
        write_atomic(SERVICES / f"{s.name}.csv", table.to_csv(index=False, lineterminator="\n"))


def _live(folder: Path, s: Settings, found: Probe, device: Device, load_: Load, progress: Progress) -> None:
    """Add answers under the recommended plan and under server only to the stored pair."""
    from artifact.pair import live
    from artifact.pair.study import recommend

    pair = load(folder)
    recommended = recommend(pair)
    assert device.endpoint is not None
    with_endpoints = found.endpoint(device.count, continues=True)
    rows = live.live(
        pair,
        recommended.plan,
        recommended.rule,
        s.live,
        with_endpoints,
        device.endpoint,
        prompts=[prompt for prompt, _ in load_.live],
        max_tokens=s.tokens,
        progress=progress,
    )
    pair.with_live(rows).store(folder)
    progress.say(f"live: {len(rows)} answers to {rows['request'].nunique()} prompts in {relative_path(folder)}")
