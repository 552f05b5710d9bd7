"""Adapters that come and go with their levels, and levels and adapters that do not fit."""

import asyncio
import threading

import numpy as np
import pytest

import disco_core as dc
from artifact.elastic.cut import write_adapter
from disco_core.endpoints.base import Prefix
from disco_core.systems.elastic import Level
from tests.helpers.elastic import LENGTH, PERCENTS, QUESTION, Counted, by_length, elastic
from tests.helpers.levels import ANCHORS, LEVELS
from tests.helpers.loopback import collect
from tests.helpers.tiny import tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def adapters(levels_folder):
    """A random adapter for each level below 100 %, by its percent."""
    rng, found = np.random.default_rng(0), {}
    for percent, shape in LEVELS.items():
        sizes = (8, shape.neurons), (576, 8)
        factors = [
            None if layer in ANCHORS else tuple(rng.normal(size=size).astype(np.float32) / 10 for size in sizes)
            for layer in range(30)
        ]
        found[percent] = levels_folder / f"{percent}-rank8.gguf"
        write_adapter(levels_folder / "100.gguf", percent / 100, factors, found[percent])
    return found


def adapted(levels, percent, adapter):
    return levels | {percent: Level(levels[percent].share, levels[percent].path, adapter)}


def logits(endpoint, percent, ids):
    """What a level that is in memory says after some ids."""
    llama = endpoint._loaded[percent]
    llama.reset()
    llama.eval(ids)
    return np.array(llama._ctx.get_logits_ith(-1)[: llama.n_vocab()])


def test_an_adapter_acts_on_its_level_alone(levels, adapters):
    ids = list(range(100, 120))
    with elastic(levels) as plain, elastic(adapted(levels, 63, adapters[63])) as endpoint:
        without, with_it = ({one: logits(end, one, ids) for one in PERCENTS} for end in (plain, endpoint))
    assert np.array_equal(without[100], with_it[100])
    assert np.array_equal(without[85], with_it[85])
    assert np.abs(without[63] - with_it[63]).max() > 0.5


def test_an_adapter_comes_and_goes_with_its_level(levels, adapters, alone):
    order = (63, 100, 63)

    async def go(endpoint):
        return [(await collect(endpoint, Prefix(QUESTION, (), LENGTH + i)))[0] for i in range(3)]

    found = []
    for kept in (True, False):
        with elastic(adapted(levels, 63, adapters[63]), by_length(order), resident=kept) as endpoint:
            found.append(asyncio.run(go(endpoint)))
    assert found[0] == found[1]
    assert found[0][1] == alone(100, Prefix(QUESTION, (), LENGTH + 1))
    assert found[0][0] != alone(63, Prefix(QUESTION, (), LENGTH))


@pytest.mark.parametrize("what", ["of another level", "a level", "cut short"])
def test_an_adapter_that_does_not_fit_is_one_line(levels, adapters, tmp_path, what, capfd):
    adapter = {"of another level": adapters[85], "a level": levels[63].path}.get(what, tmp_path / "cut.gguf")
    (tmp_path / "cut.gguf").write_bytes(adapters[63].read_bytes()[:5000])
    wrong = adapted(levels, 63, adapter)
    line = f"device: the adapter {adapter} is none that fits the level 63.gguf"
    with pytest.raises(dc.InputError) as caught:
        elastic(wrong)
    assert str(caught.value) == line
    assert "device" not in {thread.name for thread in threading.enumerate()}

    async def go(endpoint):
        return [await collect(endpoint, Prefix(QUESTION, (), LENGTH + i)) for i in range(2)]

    with elastic(wrong, by_length((63, 100)), Counted, resident=False) as endpoint:
        (tokens, refused), (answer, failure) = asyncio.run(go(endpoint))
        assert endpoint.models == {"100.gguf"}
    assert (tokens, type(refused), str(refused)) == ([], dc.RefusedError, line)
    assert failure is None
    assert len(answer) == LENGTH + 1
    assert capfd.readouterr() == ("", "")


def test_a_level_of_another_vocabulary_is_one_line(levels, tmp_path):
    other = levels | {50: Level(0.5, tiny_model(tmp_path / "50.gguf"))}
    line = "device: 50.gguf has a vocabulary of 40 tokens, the largest level has 49152"
    with pytest.raises(dc.InputError) as caught:
        elastic(other, n_ctx=64)
    assert str(caught.value) == line
    with elastic(other, lambda _: 50, n_ctx=128, resident=False) as device:
        tokens, refused = asyncio.run(collect(device, Prefix(QUESTION, (), LENGTH)))
    assert (tokens, type(refused), str(refused)) == ([], dc.RefusedError, line)
