"""The device of a pair: its tokenizer, and its time to first token by prompt length, measured or given.

It runs on few threads of this process. Prompts of several lengths come in random order, so that a drift of the
machine does not look like a slope; each starts from an empty state, and a warm-up is not recorded.
"""

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from artifact.data import model
from artifact.errors import ArtifactError
from artifact.measure.answers import timed_answer
from artifact.pair.pair import TRIALS
from artifact.pair.progress import Progress
from artifact.pair.prompts import Count, Messages, texts_of_length
from disco_core import checks
from disco_core.endpoints.base import words
from disco_core.endpoints.llama_cpp import LlamaCppEndpoint
from disco_core.errors import EndpointError, InputError
from disco_core.latency import DeviceProfile

# for models that have no chat template: the contents of the messages alone
PLAIN = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
LEVELS = (0.0, 0.25, 0.5, 0.75, 0.95)  # quantiles of the prompt lengths at which the device is measured
REPEATS = 6  # of each length, as far as there is time
FEWEST_TRIALS = 4
WARM_UP = 32  # most tokens of the warm-up's prompt
PASSES = 1.6  # passes over the lengths for which there is time even if all are of the longest
ANSWER = 8  # tokens of each trial, for the decode rate
POOR_FIT = 0.9  # R^2 of the device's line below which a note says so


@dataclass
class Device:
    """A device: its profile, as far as it is known, how its prompts are counted, and its endpoint.

    endpoint   None where the speeds were given
    """

    name: str
    count: Count
    endpoint: LlamaCppEndpoint | None = None
    profile: DeviceProfile | None = None
    trials: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=TRIALS, dtype=float))
    notes: list[str] = field(default_factory=list)
    threads: int = 1

    def close(self) -> None:
        """Free the model, if there is one."""
        if self.endpoint is not None:
            self.endpoint.close()


def open_device(given: Path | DeviceProfile, prompts: Sequence[Messages], tokens: int) -> Device:
    """The device for these prompts and answers of up to `tokens` tokens; the caller closes it.

    Given speeds have SmolLM2's tokenizer. InputError for a file that is no model, or prompts that all exceed its
    context; ArtifactError if llama-cpp-python is not installed.
    """
    if isinstance(given, DeviceProfile):
        return Device("speeds as given", _count_smollm2, profile=given)
    text = max(len(words(prompt).encode()) for prompt in prompts)
    context = min(_trained_context(given), max(1024, text + 512 + tokens))
    cores = os.cpu_count() or 1
    threads = 1 if cores < 4 else 2
    notes = list[str]()
    try:
        endpoint = LlamaCppEndpoint(given, n_threads=threads, n_ctx=context, name="DEVICE")
        try:
            endpoint.apply_chat_template(prompts[0])
        except EndpointError:
            endpoint.close()
            endpoint = LlamaCppEndpoint(given, threads, context, "DEVICE", chat_template=PLAIN)
            endpoint.apply_chat_template(prompts[0])
            notes.append("the device's model has no chat template that takes these prompts: it gets their text alone")
    except EndpointError as error:
        raise ArtifactError(str(error)) from None
    return Device(given.stem, endpoint.count, endpoint, notes=notes, threads=threads)


def _count_smollm2(prompt: Messages) -> int:
    return model.count_tokens(model.build(words(prompt)))


def _trained_context(path: Path) -> int:
    """The context that the model was trained with, read without its weights."""
    try:
        with closing(model.load(path, vocab_only=True)) as file:
            kind = file.metadata.get("general.architecture", "")
            return int(file.metadata.get(f"{kind}.context_length", 4096))
    except ImportError:
        raise ArtifactError("DEVICE: it needs the package llama-cpp-python; run `make setup`") from None
    except (ValueError, RuntimeError) as error:
        raise InputError(f"DEVICE: {path} cannot be loaded: {error}") from None


async def measure(
    device: Device, prompts: Sequence[Messages], lengths: ArrayLike, limit_s: float, progress: Progress
) -> None:
    """Fill in the device's trials and profile, from prompts at quantiles of the lengths, in at most about `limit_s`.

    ArtifactError if it is too slow for a few trials in that time, or fails.
    """
    assert device.endpoint is not None
    began = time.monotonic()
    try:
        plan, warm_s = await _planned(device, prompts, checks.tokens(lengths, "lengths"), limit_s)
        rows, gaps = list[tuple[int, float]](), list[float]()
        progress.start(len(plan), "device", "trial")
        longest_s = warm_s
        for prompt in plan:
            enough = len(rows) >= FEWEST_TRIALS and len({length for length, _ in rows}) > 1
            late = time.monotonic() - began + longest_s > limit_s
            if enough and (late or progress.interrupted):
                break
            started = time.monotonic()
            times = await _times(device.endpoint, prompt, ANSWER)
            longest_s = max(longest_s, time.monotonic() - started)
            if times:
                rows.append((device.count(prompt), times[0]))
                gaps += np.diff(times).tolist()
            progress.update()
    except EndpointError as error:
        raise ArtifactError(str(error)) from None
    finally:
        progress.stop()
    device.trials = pd.DataFrame(rows, columns=TRIALS)
    device.profile = _fit(device, gaps)


async def _times(endpoint: LlamaCppEndpoint, prompt: Messages, n: int) -> list[float]:
    """Seconds from the request to each token."""
    built: Any = endpoint.apply_chat_template(prompt)
    return [at for _, at in await timed_answer(endpoint, built, n)]


async def _planned(
    device: Device, prompts: Sequence[Messages], lengths: np.ndarray, limit_s: float
) -> tuple[list[Messages], float]:
    """The prompts of all trials in random order, and the seconds that the warm-up took.

    After the warm-up the lengths are cut to those for which there is time.
    """
    assert device.endpoint is not None
    (warm_up,) = texts_of_length(prompts, [min(int(lengths.min()), WARM_UP)], device.count)
    await _times(device.endpoint, warm_up, 2)
    started = time.monotonic()
    times = await _times(device.endpoint, warm_up, ANSWER)
    warm_s = time.monotonic() - started
    rate = device.count(warm_up) / (times[0] if times else warm_s)
    room = (device.endpoint.context or checks.MOST_TOKENS) - ANSWER - 64
    most = min(room, int(rate * limit_s / len(LEVELS) / PASSES))
    wanted = np.quantile(lengths, LEVELS, method="inverted_cdf")
    if wanted.max() > most:
        device.notes.append(
            f"the device was measured with prompts of up to {most} tokens; its line goes on from there"
        )
    wanted = np.unique(np.minimum(wanted, most))
    if np.ptp(wanted) < max(16, 0.5 * wanted.max()):  # too narrow for a slope
        wanted = np.unique([*wanted, wanted.max() + 32, wanted.max() + 64, 2 * wanted.max()])
        wanted = np.unique(np.minimum(wanted, room))
    made = texts_of_length(prompts, [int(length) for length in wanted], device.count)
    order = [k for _ in range(REPEATS) for k in np.random.default_rng(len(made)).permutation(len(made))]
    return [made[k] for k in order], warm_s


def _fit(device: Device, gaps: Sequence[float]) -> DeviceProfile:
    """The line through the trials, with a note where it is poor."""
    if len(device.trials) < 2 or not gaps:
        raise ArtifactError(f"DEVICE: {len(device.trials)} trials had a token in the time there was; raise MINUTES")
    length, ttft_s = device.trials["prompt_tokens"], device.trials["ttft_s"]
    rate = float(1 / max(np.median(gaps), 1e-6))
    try:
        profile = DeviceProfile.fit(length, ttft_s, rate)
    except InputError:
        device.notes.append("the device's trials show no growth with prompt length: its line goes through the origin")
        return DeviceProfile(float(length @ length / (length @ ttft_s)), rate)
    if profile.r_squared < POOR_FIT:
        device.notes.append(f"the device's line fits its trials poorly (R2 {profile.r_squared:.2f}); was it busy?")
    return profile
