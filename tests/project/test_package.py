"""The package as it is imported: its exported names, its docstrings' examples, how light it is."""

import doctest
import functools
import importlib
import subprocess
import sys

import numpy as np
import pytest

import disco_core as dc
from tests.helpers import scripts

CORE = ("latency", "workload", "cost", "dispatch", "delivery", "simulate", "queueing")
WITH_EXAMPLES = [
    *(f"disco_core.{name}" for name in CORE),
    "disco_core.systems.pd_device.timing",
    "disco_core.systems.compression",
    "artifact.analysis.quality",
    "artifact.measure.judge",
]


def test_the_public_face_is_what_is_exported():
    assert all(hasattr(dc, name) for name in dc.__all__)
    public = {name for name in vars(dc) if not name.startswith("_") and not isinstance(getattr(dc, name), type(dc))}
    assert public == set(dc.__all__)
    assert all(getattr(dc, name).__doc__ for name in dc.__all__)


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_docstring_examples_run(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_import_is_light_and_quick():
    """Ours adds less than NumPy takes, a ratio that a busy machine keeps; asyncio is Python's."""
    command = [sys.executable, scripts.path("import_times.py")]
    run = functools.partial(subprocess.run, command, capture_output=True, text=True, check=True)
    runs = [run().stdout.split() for _ in range(5)]
    heavy = {"scipy", "pandas", "matplotlib", "seaborn", "papermill", "llama_cpp", "pooch", "tqdm", "httpx"}
    assert heavy.isdisjoint(runs[0])
    assert np.median([float(words[0]) for words in runs]) < 1
