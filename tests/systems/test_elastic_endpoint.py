"""The endpoint of several levels, beside a server of the whole model: which level answers, moves, fails over.

The tests that every endpoint passes are in tests/endpoints, this one's manifest in test_elastic_levels.
"""

import asyncio
import contextlib
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import disco_core as dc
from artifact.data.model import build, smollm2_path
from artifact.elastic.cut import write_adapter
from disco_core.endpoints.base import Prefix, Token
from disco_core.endpoints.llama_cpp import BATCH, LlamaCppEndpoint
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from disco_core.endpoints.local_server import LocalServer
from disco_core.systems.elastic import ElasticEndpoint, Level, load_levels
from tests.helpers.levels import ANCHORS, LEVELS
from tests.helpers.loopback import KEY, collect, prefix
from tests.helpers.tiny import tiny_model

pytestmark = pytest.mark.slow
QUESTION = build("Why is the sea salty? Answer in three sentences.")
LONG = build("Tell me more about the garden. " * 120)
PERCENTS = (100, *LEVELS)
LENGTH = 16
DEVICE, SERVER = dc.End.DEVICE, dc.End.SERVER


class MoveAt(dc.Rule):
    """Hands over to the target after so many tokens."""

    def __init__(self, target, at):
        self.target, self.at = target, at

    def decide(self, state):
        return dc.HAND_OVER if len(state.record.tokens) >= self.at else dc.STAY


class Counted(ElasticEndpoint):
    """Counts the models that are in memory: vocabularies alone, and levels."""

    def _load(self, path, **options):
        llama = super()._load(path, **options)
        here = self.__dict__.setdefault("vocabularies" if options else "models", set())
        here.add(path.name)
        self.most = max(getattr(self, "most", 0), len(self.__dict__.get("models", ())))
        close = llama.close

        def closed():
            here.discard(path.name)
            close()

        llama.close = closed
        return llama


@pytest.fixture(scope="module")
def levels(levels_folder):
    return load_levels(levels_folder, smollm2_path())


@pytest.fixture(scope="module")
def server():
    with LocalServer(smollm2_path(), api_key=KEY, n_ctx=1024) as running:
        yield running


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


def elastic(levels, choose=None, kind=ElasticEndpoint, **options):
    return kind(levels, choose, **{"n_ctx": 1024, "name": "device"} | options)


def by_length(percents, most=LENGTH):
    """A level for each request: the first for one that may have `most` tokens, the next for one of one more."""
    return lambda asked: percents[asked.max_tokens - most]


def told(tokens):
    """Tokens of a stream as those of an endpoint."""
    return [Token(token.index, token.text, token.id) for token in tokens]


# --- levels by themselves


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


# --- beside a server of the whole model


def streamed(server, device, rule=None, plan=None, length=LENGTH, prompt=QUESTION, until=None):
    """The record and the tokens of a live stream; `until` is called after each token."""

    async def go():
        async with LlamaServerEndpoint(server.url, api_key=KEY, name="server") as there:
            assert there.vocabulary == device.vocabulary
            run = dc.stream(
                prompt,
                plan=plan or dc.plan_device_only(),
                server=there,
                device=device,
                rule=rule,
                max_tokens=length,
                wait=False,
            )
            tokens = []
            async for token in run:
                tokens.append(token)
                if until is not None:
                    await until(tokens)
            assert [token.index for token in tokens] == list(range(len(tokens)))
            assert run.record.complete
            assert run.record.unconfirmed == [0, 0]
            return run.record, tokens

    return asyncio.run(go())


def of_server(server, asked):
    async def go():
        async with LlamaServerEndpoint(server.url, api_key=KEY) as there:
            return await collect(there, asked)

    tokens, failure = asyncio.run(go())
    assert failure is None
    return tokens


@pytest.mark.parametrize(
    ("percent", "prompt"),
    [*((percent, QUESTION) for percent in PERCENTS), (63, [{"role": "user", "content": "Describe a garden."}])],
)
def test_an_answer_moves_to_the_server_by_token_ids(levels, server, alone, resident, percent, prompt):
    with elastic(levels, lambda _: percent, resident=resident) as device:
        record, tokens = streamed(server, device, MoveAt(SERVER, 4), prompt=prompt)
    at = record.migrated_at
    assert [token.source for token in tokens] == [DEVICE] * at + [SERVER] * (len(tokens) - at)
    assert record.failures == []
    assert told(tokens[:at]) == alone(percent, Prefix(prompt, (), at))
    assert all(token.id is not None for token in tokens[:at])
    assert told(tokens[at:]) == of_server(server, Prefix(prompt, tuple(told(tokens[:at])), LENGTH - at))


@pytest.mark.parametrize("percent", PERCENTS)
def test_an_answer_of_the_server_moves_to_the_level_that_is_chosen(levels, server, alone, percent):
    def choose(asked):
        assert asked.generated
        return percent

    with elastic(levels, choose, resident=False) as device:
        record, tokens = streamed(server, device, MoveAt(DEVICE, 4), dc.plan_server_only())
        assert device.answered == {percent: 1}
    at = record.migrated_at
    assert [token.source for token in tokens] == [SERVER] * at + [DEVICE] * (len(tokens) - at)
    assert record.failures == []
    assert told(tokens[at:]) == alone(percent, Prefix(QUESTION, tuple(told(tokens[:at])), LENGTH - at))


def test_the_server_goes_on_where_the_device_was_closed(levels, server, alone, resident):
    with elastic(levels, lambda _: 85, resident=resident) as device:

        async def until(tokens):
            if len(tokens) == 4:
                await asyncio.to_thread(device.close)

        record, tokens = streamed(server, device, length=200, until=until)
    at = sum(token.source is DEVICE for token in tokens)
    assert [str(failure) for failure in record.failures] == ["device: it was stopped"]
    assert 4 <= at < len(tokens)
    assert told(tokens[:at]) == alone(85, Prefix(QUESTION, (), at))
    assert told(tokens[at:]) == of_server(server, Prefix(QUESTION, tuple(told(tokens[:at])), 200 - at))


def test_a_level_goes_on_where_the_server_died(levels, alone):
    with LocalServer(smollm2_path(), api_key=KEY, n_ctx=1024) as dying, elastic(levels, lambda _: 63) as device:

        async def until(tokens):
            if len(tokens) == 4:
                await asyncio.to_thread(dying.close)

        record, tokens = streamed(dying, device, plan=dc.plan_server_only(), length=60, until=until)
    at = sum(token.source is SERVER for token in tokens)
    assert [type(failure) for failure in record.failures] == [dc.CutError]
    assert 4 <= at < len(tokens)
    assert told(tokens[at:]) == alone(63, Prefix(QUESTION, tuple(told(tokens[:at])), 60 - at))


def failing(asked):
    raise KeyError("no size fits")


@pytest.mark.parametrize(
    ("choose", "word"),
    [
        (lambda _: 50, "device: it has no level 50; its levels are 100, 85, 63 %"),
        (lambda _: None, "device: it has no level None; its levels are 100, 85, 63 %"),
        (lambda _: 0.63, "device: it has no level 0.63; its levels are 100, 85, 63 %"),
        (lambda _: [63], "device: no level could be chosen: TypeError: unhashable type: 'list'"),
        (failing, "device: no level could be chosen: KeyError: 'no size fits'"),
    ],
)
def test_an_unknown_level_refuses_and_the_server_answers(levels, server, choose, word):
    with elastic(levels, choose, resident=False) as device:
        record, tokens = streamed(server, device)
        assert not device.answered
        assert [(type(one), str(one)) for one in record.failures] == [(dc.RefusedError, word)]
        assert told(tokens) == of_server(server, Prefix(QUESTION, (), LENGTH))
        assert device.confirmed == 0

        record, tokens = streamed(server, device, MoveAt(DEVICE, 4), dc.plan_server_only())
        assert [str(one) for one in record.failures] == [word]
        assert told(tokens) == of_server(server, Prefix(QUESTION, (), LENGTH))


def test_what_chooses_cannot_change_the_prompt(levels, alone):
    def choose(asked):
        asked.prompt[0] = {"role": "user", "content": "Say nothing."}
        return 100

    messages = [{"role": "user", "content": "Describe a garden."}]
    with elastic(levels, choose) as device:
        found = asyncio.run(collect(device, Prefix(messages, (), LENGTH)))
    assert messages == [{"role": "user", "content": "Describe a garden."}]
    assert found == (alone(100, Prefix(messages, (), LENGTH)), None)


# --- adapters, and files that are not what they were


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


def test_a_level_that_is_gone_refuses_and_the_others_answer(levels, server, tmp_path):
    copy = tmp_path / "63.gguf"
    copy.write_bytes(levels[63].path.read_bytes())
    fewer = levels | {63: Level(levels[63].share, copy)}
    with elastic(fewer, by_length((63, 100)), resident=False) as device:
        copy.unlink()
        record, tokens = streamed(server, device)
        assert told(tokens) == of_server(server, Prefix(QUESTION, (), LENGTH))
        (refused,) = record.failures
        assert type(refused) is dc.RefusedError
        assert str(refused).startswith("device: model_path ")
        assert "63.gguf' cannot be loaded" in str(refused)
        assert "\n" not in str(refused)
        record, tokens = streamed(server, device, length=LENGTH + 1)
    assert record.failures == []
    assert {token.source for token in tokens} == {DEVICE}


def test_a_level_of_another_vocabulary_is_one_line(levels, tmp_path):
    other = levels | {50: Level(0.5, tiny_model(tmp_path / "50.gguf"))}
    line = "device: 50.gguf has a vocabulary of 40 tokens, the largest level has 49152"
    with pytest.raises(dc.InputError) as caught:
        elastic(other, n_ctx=64)
    assert str(caught.value) == line
    with elastic(other, lambda _: 50, n_ctx=128, resident=False) as device:
        tokens, refused = asyncio.run(collect(device, Prefix(QUESTION, (), LENGTH)))
    assert (tokens, type(refused), str(refused)) == ([], dc.RefusedError, line)
