"""Measure the device model on this machine: every token's time, for prompts of growing length.

One thread, the state reset before every trial (a reused prefix would make TTFT near zero), lengths in random
order so that a drifting machine does not pass for a slope, one warm-up trial that is not kept.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm import tqdm

from artifact.data import model
from artifact.measure.kept import Kept
from disco_core import checks
from disco_core.errors import InputError

if TYPE_CHECKING:
    from llama_cpp import Llama

LENGTHS = (8, 16, 32, 64, 128, 256, 512, 1024)
QUICK_LENGTHS = (8, 32, 96, 192)
COLUMNS = ["prompt_tokens", "repeat", "token", "generated_s"]

_SUBJECTS = ("a river", "the tram", "an old library", "the night market", "a lighthouse", "our kitchen", "the forest")
_TASKS = ("Describe {0} to a friend who has never seen it.", "List three facts about {0} and explain each of them.")


def measure_device(
    lengths: Sequence[int] = LENGTHS, repeats: int = 4, decode_tokens: int = 32, seed: int = 0
) -> pd.DataFrame:
    """Run the device model and record one row per token.

    Columns: prompt_tokens, repeat, token (0 is the first), generated_s (seconds from the request). Decoding goes
    on past an end-of-answer token, since only its pace is asked for. InputError for lengths, repeats or
    decode_tokens below 1, or a prompt longer than the model's context.
    """
    for name, value in (("repeats", repeats), ("decode_tokens", decode_tokens)):
        checks.tokens([value], name)
    wanted = checks.tokens(lengths, "lengths")
    trials = [(int(length), repeat) for length in wanted for repeat in range(repeats)]
    rows = []
    with closing(_load(int(wanted.max()) + decode_tokens)) as llama:
        text = _text(llama, int(wanted.max()))
        _generate(llama, text[: int(wanted.min())], 2)
        shuffled = np.random.default_rng(seed).permutation(trials)
        for length, repeat in tqdm(shuffled, desc="device model", unit="trial", disable=None):
            times = _generate(llama, text[:length], decode_tokens)
            rows += [(length, repeat, token, at) for token, at in enumerate(times)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values(["prompt_tokens", "repeat", "token"], ignore_index=True)


def device_measurements(measurements: Path | str = "", *, quick: bool = False) -> tuple[Path, pd.DataFrame]:
    """Where the measurements are and what they are, as of `measure_device`.

    Without a file they are made, in about a minute (quick: some seconds), and kept in the build folder for the next
    call. Raises ArtifactError for a file that does not hold measurements.
    """
    return KEPT.measurements(measurements, quick=quick)


def _make(quick: bool) -> pd.DataFrame:
    return measure_device(QUICK_LENGTHS, repeats=2, decode_tokens=16) if quick else measure_device()


def _check(found: pd.DataFrame) -> None:
    for name in COLUMNS[:-1]:
        checks.seconds(found[name], name, unit="")
    checks.seconds(found["generated_s"], "generated_s")
    if found.prompt_tokens.nunique() < 2 or found.token.max() < 1:
        raise InputError("it needs two prompt lengths and two tokens at least")


def _load(context: int) -> "Llama":
    trained = int(model.tokenizer().metadata["llama.context_length"])
    if context > trained:
        raise InputError(f"prompt and answer need {context} tokens of context; {model.NAME} has {trained}")
    return model.load(n_ctx=context, n_threads=1, n_threads_batch=1, seed=0)


def _text(llama: "Llama", length: int) -> list[int]:
    """A built prompt of many requests, at least `length` tokens long; a prompt of n tokens is its first n."""
    requests = [task.format(subject) for task in _TASKS for subject in _SUBJECTS]
    once: list[int] = llama.tokenize(model.build(" ".join(requests)).encode(), add_bos=False, special=True)
    return (once * (length // len(once) + 1))[:length]


def _generate(llama: "Llama", prompt: list[int], n: int) -> list[float]:
    """Seconds from the request to each of n greedily decoded tokens."""
    llama.reset()
    start = time.perf_counter()
    return [time.perf_counter() - start for _ in islice(llama.generate(prompt, temp=0.0), n)]


KEPT = Kept("device", f"tokens of {model.NAME}, timed on this machine", COLUMNS, _make, _check)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure into a csv, as a command."""
    does = "Run the device model on this machine and write the time of every token."
    return KEPT.main(argv, module="measure", does=does, small="fewer and shorter prompts: seconds, not a minute")


if __name__ == "__main__":
    sys.exit(main())
