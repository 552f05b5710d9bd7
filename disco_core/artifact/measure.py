"""Measure the device model on this machine: every token's time, for prompts of growing length.

One thread, the state reset before every trial (a reused prefix would make TTFT near zero), lengths in random
order so that a drifting machine does not pass for a slope, one warm-up trial that is not kept.
"""

import argparse
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

from disco_core import checks
from disco_core.artifact import model
from disco_core.artifact.commands import command
from disco_core.artifact.files import BUILD, ROOT, write_atomic
from disco_core.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from llama_cpp import Llama

LENGTHS = (8, 16, 32, 64, 128, 256, 512, 1024)
QUICK_LENGTHS = (8, 32, 96, 192)
COLUMNS = ["prompt_tokens", "repeat", "token", "generated_s"]
DEVICE_CSV = BUILD / "measured" / "device.csv"

_SUBJECTS = ("a river", "the tram", "an old library", "the night market", "a lighthouse", "our kitchen", "the forest")
_TASKS = ("Describe {0} to a friend who has never seen it.", "List three facts about {0} and explain each of them.")


def measure_device(
    lengths: Sequence[int] = LENGTHS, repeats: int = 5, decode_tokens: int = 48, seed: int = 0
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
    path = ROOT / measurements if measurements else BUILD / ("quick" if quick else "") / "measured" / "device.csv"
    if not measurements and not path.exists():
        _measure(path, quick=quick)
    try:
        found = pd.read_csv(path)
        if missing := [name for name in COLUMNS if name not in found]:
            raise InputError(f"it has no column {', '.join(missing)}")
        for name in COLUMNS[:-1]:
            checks.seconds(found[name], name, unit="")
        checks.seconds(found["generated_s"], "generated_s")
        if found.prompt_tokens.nunique() < 2 or found.token.max() < 1:
            raise InputError("it needs two prompt lengths and two tokens at least")
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        said = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(
            f"{path} does not hold device measurements: {said}; without it, they are made anew"
        ) from None
    return path, found


def _measure(path: Path, *, quick: bool) -> pd.DataFrame:
    found = measure_device(QUICK_LENGTHS, repeats=2, decode_tokens=16) if quick else measure_device()
    write_atomic(path, found.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    return found


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


@command("no measurement was kept")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure into a csv; exit 0, 1 with one line for an error, 130 when interrupted (nothing is written)."""
    parser = argparse.ArgumentParser(
        prog="python -m disco_core.artifact.measure",
        description="Run the device model on this machine and write the time of every token.",
    )
    parser.add_argument("--out", type=Path, default=DEVICE_CSV, help="csv to write (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter prompts: seconds, not a minute")
    options = parser.parse_args(argv)
    rows = _measure(options.out, quick=options.quick)
    print(f"{len(rows)} tokens of {model.NAME} timed: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
