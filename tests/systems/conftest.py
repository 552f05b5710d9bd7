"""Levels of the device model, what each says by itself, and both ways to hold them in memory."""

import asyncio
import contextlib

import pytest

from artifact.data.model import smollm2_path
from disco_core.endpoints.llama_cpp import LlamaCppEndpoint
from disco_core.systems.elastic import load_levels
from tests.helpers.loopback import collect


@pytest.fixture(scope="module")
def levels(levels_folder):
    return load_levels(levels_folder, smollm2_path())


@pytest.fixture(scope="module")
def alone(levels):
    """What each level says by itself to a prefix, as a plain endpoint of its file."""

    with contextlib.ExitStack() as stack:
        plain = {percent: LlamaCppEndpoint(level.path, n_ctx=1024) for percent, level in levels.items()}
        for endpoint in plain.values():
            stack.enter_context(endpoint)

        def answer(percent, asked):
            tokens, failure = asyncio.run(collect(plain[percent], asked))
            assert failure is None
            return tokens

        yield answer


@pytest.fixture(params=[True, False], ids=["resident", "on demand"])
def resident(request):
    return request.param
