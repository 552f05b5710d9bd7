"""The endpoint of several levels by itself: which one answers, in what memory, and how it is cancelled and closed.

The tests that every endpoint passes are in tests/endpoints, and those beside a server in test_elastic_streams.
"""

import asyncio
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import disco_core as dc
from disco_core.endpoints.base import Prefix
from disco_core.endpoints.llama_cpp import BATCH
from disco_core.systems.elastic import ElasticEndpoint
from tests.helpers.elastic import LENGTH, LONG, PERCENTS, QUESTION, Counted, by_length, elastic
from tests.helpers.loopback import collect, prefix

pytestmark = pytest.mark.slow


def test_each_request_is_answered_by_the_level_that_was_chosen(levels, alone, resident):
    order = (100, 63, 85, 63, 100)
    asked = [Prefix(QUESTION, (), LENGTH + i) for i in range(len(order))]

    async def go(endpoint):
        return [await collect(endpoint, one) for one in asked]

    with elastic(levels, by_length(order), Counted, resident=resident) as endpoint:
        found = asyncio.run(go(endpoint))
        assert endpoint.answered == {100: 2, 63: 2, 85: 1}
        assert (endpoint.switched_s == 0) is resident
        assert endpoint.most == len(endpoint.models) == (len(levels) if resident else 1)
        assert endpoint.vocabularies == {"100.gguf"}
    assert endpoint.models == endpoint.vocabularies == set()
    assert found == [(alone(percent, one), None) for percent, one in zip(order, asked, strict=True)]
    texts = {"".join(token.text for token in tokens) for tokens, _ in found[:3]}
    assert len(texts) == 3


def test_a_vocabulary_takes_no_weights_into_memory(levels):
    """So that the largest level is not there twice, nor while another one answers."""

    def mapped():
        lines = Path("/proc/self/maps").read_text().splitlines()
        return Counter(Path(line.split()[-1]).name for line in lines if line.endswith(".gguf"))

    before = mapped()
    with elastic(levels, lambda _: 63, resident=False) as endpoint:
        assert set(mapped() - before) == {"100.gguf"}
        asyncio.run(collect(endpoint, Prefix(QUESTION, (), 1)))
        assert set(mapped() - before) == {"63.gguf"}
        assert endpoint.count(QUESTION) == 20
    assert mapped() == before


def test_an_answer_goes_on_at_another_level_by_token_ids(levels, alone, resident):
    def choose(asked):
        return 100 if not asked.generated else 63

    async def go(endpoint):
        head, _ = await collect(endpoint, Prefix(QUESTION, (), 5))
        return head, await collect(endpoint, Prefix(QUESTION, tuple(head), 8))

    with elastic(levels, choose, resident=resident) as endpoint:
        head, (tail, failure) = asyncio.run(go(endpoint))
    assert failure is None
    assert len(head) == 5
    assert tail == alone(63, Prefix(QUESTION, tuple(head), 8))
    assert tail != alone(100, Prefix(QUESTION, tuple(head), 8))


def test_requests_that_wait_for_one_another_get_their_own_levels(levels, alone, resident):
    order = (63, 100, 63, 85)

    async def go(endpoint):
        return await asyncio.gather(*(collect(endpoint, Prefix(QUESTION, (), LENGTH + i)) for i in range(4)))

    with elastic(levels, by_length(order), resident=resident) as endpoint:
        found = asyncio.run(go(endpoint))
    assert found == [(alone(percent, Prefix(QUESTION, (), LENGTH + i)), None) for i, percent in enumerate(order)]


@pytest.mark.parametrize("percent", PERCENTS)
def test_a_prefill_is_cancelled_at_every_level_and_the_next_is_answered_by_another(levels, alone, resident, percent):
    other = 63 if percent == 100 else 100

    async def go(endpoint):
        tokens = endpoint.generate(Prefix(LONG, (), LENGTH))
        first = asyncio.ensure_future(anext(tokens))
        while (tokens.prefilled or 0) < BATCH:
            await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.wait([first])
        assert BATCH <= endpoint.confirmed < endpoint.count(LONG)
        return await collect(endpoint, Prefix(QUESTION, (), LENGTH + 1))

    with elastic(levels, by_length((percent, other)), resident=resident) as endpoint:
        found = asyncio.run(go(endpoint))
    assert found == (alone(other, Prefix(QUESTION, (), LENGTH + 1)), None)


def test_a_cancel_while_a_level_is_loaded_leaves_the_endpoint_usable(levels, alone):
    loading, go_on = threading.Event(), threading.Event()

    class Slow(ElasticEndpoint):
        def _level(self, percent):
            llama = super()._level(percent)
            if percent == 63:
                loading.set()
                go_on.wait(10)
            return llama

    async def go(endpoint):
        first = asyncio.ensure_future(anext(endpoint.generate(Prefix(LONG, (), LENGTH))))
        assert await asyncio.to_thread(loading.wait, 10)
        first.cancel()
        await asyncio.sleep(0.05)
        go_on.set()
        await asyncio.wait([first])
        assert endpoint.confirmed == 0
        return await collect(endpoint, Prefix(QUESTION, (), LENGTH + 1))

    with elastic(levels, by_length((63, 85)), Slow, resident=False) as endpoint:
        found = asyncio.run(go(endpoint))
    assert found == (alone(85, Prefix(QUESTION, (), LENGTH + 1)), None)


def test_other_threads_count_tokens_while_levels_come_and_go(levels):
    over, failures, counted = threading.Event(), [], set()

    def count(endpoint, thread):
        try:
            i = 0
            while not over.is_set():
                counted.add(endpoint.count(f"{thread} {i % 10} is a number") - len(f"{thread}"))
                endpoint._tokenize.cache_clear()
                i += 1
        except Exception as failure:
            failures.append(failure)

    async def go(endpoint):
        for i in range(6):
            _, failure = await collect(endpoint, Prefix(QUESTION, (), 1 + i % 3))
            assert failure is None

    with elastic(levels, by_length(PERCENTS, 1), resident=False) as endpoint:
        threads = [threading.Thread(target=count, args=(endpoint, i)) for i in range(3)]
        for thread in threads:
            thread.start()
        asyncio.run(go(endpoint))
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(counted) == 1


def test_closing_ends_what_runs_and_what_waits_at_any_level(levels, resident):
    async def go():
        async with elastic(levels, by_length(PERCENTS), Counted, resident=resident) as endpoint:
            running = [
                asyncio.ensure_future(collect(endpoint, Prefix(LONG, (), LENGTH + i))) for i in range(len(PERCENTS))
            ]
            await asyncio.sleep(0.2)
        assert endpoint.models == endpoint.vocabularies == set()
        return await asyncio.gather(*running), await collect(endpoint, prefix(QUESTION))

    ended, (_, refused) = asyncio.run(go())
    assert [(tokens, type(failure)) for tokens, failure in ended] == [([], dc.CutError)] * len(PERCENTS)
    assert str(refused) == "device: it is closed"


def test_a_request_that_was_cancelled_while_it_waited_loads_nothing(levels):
    async def go(device):
        running = [asyncio.ensure_future(collect(device, Prefix(LONG, (), LENGTH + i))) for i in range(len(PERCENTS))]
        await asyncio.sleep(0.2)
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    with elastic(levels, by_length(PERCENTS), resident=False) as device:
        asyncio.run(go(device))
        assert set(device.answered) == {PERCENTS[0]}


def test_a_level_may_be_a_number_of_numpy(levels, alone):
    with elastic(levels, lambda _: np.int64(63)) as device:
        asked = Prefix(QUESTION, (), 4)
        assert asyncio.run(collect(device, asked)) == (alone(63, asked), None)
        assert [type(percent) for percent in device.answered] == [int]


def test_what_chooses_cannot_change_the_prompt(levels, alone):
    def choose(asked):
        asked.prompt[0] = {"role": "user", "content": "Say nothing."}
        return 100

    messages = [{"role": "user", "content": "Describe a garden."}]
    with elastic(levels, choose) as device:
        found = asyncio.run(collect(device, Prefix(messages, (), LENGTH)))
    assert messages == [{"role": "user", "content": "Describe a garden."}]
    assert found == (alone(100, Prefix(messages, (), LENGTH)), None)
