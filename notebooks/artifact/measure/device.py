"""The device model on this machine: the time of every token, for prompts of increasing length.

It runs on one thread. The state is reset before every trial (a cached prefix would make TTFT near zero), lengths come
in random order so that a drift of the machine does not look like a slope, and a warm-up trial is not recorded. One
table:

    trials   prompt_tokens, repeat, token (0 is the first), generated_s (seconds from the request)

Decoding continues after an end-of-answer token, since only its pace is measured.
"""

import time
from contextlib import closing
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from artifact.data import model
from artifact.measure.pieces import Run, Tables
from disco_core import checks
from disco_core.errors import InputError

if TYPE_CHECKING:
    from llama_cpp import Llama

_SUBJECTS = ("a river", "the tram", "an old library", "the night market", "a lighthouse", "our kitchen", "the forest")
_TASKS = ("Describe {0} to a friend who has never seen it.", "List three facts about {0} and explain each of them.")


def measure(run: Run) -> Tables:
    """Run the device model: `lengths` of prompts, `repeats` of each, `decode_tokens`, `seed` of the order.

    InputError for lengths, repeats or decode_tokens below 1, or a prompt longer than the model's context.
    """
    s = run.settings
    lengths = checks.tokens(s.lengths, "lengths")
    repeats, tokens = checks.count(s.repeats, "repeats"), checks.count(s.decode_tokens, "decode_tokens")
    trials = [(int(length), repeat) for length in lengths for repeat in range(repeats)]
    run.expect(len(trials), "trial")
    rows = []
    with closing(_load(int(lengths.max()) + tokens)) as llama:
        text = _text(llama, int(lengths.max()))
        _generate(llama, text[: int(lengths.min())], 2)
        for length, repeat in np.random.default_rng(s.seed).permutation(trials).tolist():
            prompt = text[:length]
            times = run.piece_now(f"{length} tokens, trial {repeat}", partial(_generate, llama, prompt, tokens))
            rows += [(length, repeat, token, at) for token, at in enumerate(times)]
    table = pd.DataFrame(rows, columns=["prompt_tokens", "repeat", "token", "generated_s"])
    return {"trials": table.sort_values(["prompt_tokens", "repeat", "token"], ignore_index=True)}


def _load(context: int) -> "Llama":
    trained = int(model.tokenizer().metadata["llama.context_length"])
    if context > trained:
        raise InputError(f"prompt and answer need {context} tokens of context; {model.NAME} has {trained}")
    return model.load(n_ctx=context, n_threads=1, n_threads_batch=1, seed=0)


def _text(llama: "Llama", length: int) -> list[int]:
    """The first `length` tokens of many requests in the chat template; a prompt of n tokens is the first n."""
    requests = [task.format(subject) for task in _TASKS for subject in _SUBJECTS]
    once: list[int] = llama.tokenize(model.build(" ".join(requests)).encode(), add_bos=False, special=True)
    return (once * (length // len(once) + 1))[:length]


def _generate(llama: "Llama", prompt: list[int], n: int) -> list[float]:
    """Seconds from the request to each of n greedily decoded tokens."""
    llama.reset()
    start = time.perf_counter()
    return [time.perf_counter() - start for _ in islice(llama.generate(prompt, temp=0.0), n)]
