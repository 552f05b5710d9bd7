"""The real model in this process and behind a local server."""

import asyncio
import functools
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

import disco_core as dc
from artifact.data.model import build, smollm2_path
from disco_core.endpoints.base import Prefix, Token
from disco_core.endpoints.llama_cpp import BATCH, LlamaCppEndpoint
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from disco_core.endpoints.local_server import LocalServer
from disco_core.endpoints.openai import OpenAIEndpoint
from disco_core.live.stream import stream
from disco_core.systems.elastic import ElasticEndpoint, load_levels
from tests.helpers import scripts
from tests.helpers.loopback import KEY, collect, prefix

ROOT = Path(dc.__file__).parents[1]


# --- the local server


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_server_does_not_outlive_its_parent(how):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "notebooks")])}
    parent = subprocess.Popen(
        [sys.executable, scripts.path("local_server.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    with parent:
        pid = int(parent.stdout.readline())
        parent.send_signal(how)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# --- the real model


@pytest.fixture(scope="module")
def server():
    with LocalServer(smollm2_path(), api_key=KEY, n_ctx=1024) as running:
        yield running


@pytest.fixture(scope="module", params=[LlamaCppEndpoint, ElasticEndpoint], ids=lambda kind: kind.__name__)
def local(request):
    """How to make an endpoint in this process: of the model, or of its levels, the largest of which is the model."""
    if request.param is LlamaCppEndpoint:
        return functools.partial(LlamaCppEndpoint, smollm2_path(), name="device")
    levels = load_levels(request.getfixturevalue("levels_folder"), smollm2_path())
    return functools.partial(ElasticEndpoint, levels, name="device")


@pytest.fixture(scope="module")
def device(local):
    with local(n_ctx=1024) as endpoint:
        yield endpoint


@pytest.fixture
def there(server):
    return LlamaServerEndpoint(server.url, api_key=KEY, name="server")


GARDEN = build("Write two sentences about a garden.")
EMOJI = build("Write the emoji 🙂 three times and say hi.")
LONG = build("Tell me more about the garden. " * 120)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [GARDEN, EMOJI])
def test_both_endpoints_of_the_model_share_a_vocabulary_and_continue_exactly(device, there, prompt):
    assert device.vocabulary == there.vocabulary
    assert device.count(prompt) == there.count(prompt)

    async def go():
        async with there:
            for source, target in ((device, there), (there, device)):
                head, failure = await collect(source, prefix(prompt, max_tokens=5))
                assert failure is None
                assert len(head) == 5
                twice = [await collect(target, prefix(prompt, head, 6)) for _ in range(2)]
                assert twice[0] == twice[1]
                tail, failure = twice[0]
                assert failure is None
                assert [token.index for token in tail] == list(range(5, 5 + len(tail)))
                ids = [token.id for token in [*head, *tail]]
                if None not in ids:  # the server keeps the ids of a character that its budget cut off
                    text = device._llama.detokenize(ids).decode(errors="ignore")
                    assert "".join(token.text for token in [*head, *tail]) == text

    asyncio.run(go())


@pytest.mark.slow
def test_a_device_has_ended_while_its_tokens_are_still_on_their_way(device):
    async def go():
        generation = device.generate(prefix(GARDEN, max_tokens=3))
        await anext(generation)
        async with asyncio.timeout(60):
            while not generation.ended:
                await asyncio.sleep(0.01)
        return [token.index async for token in generation]

    assert asyncio.run(go()) == [1, 2]


@pytest.mark.slow
def test_without_a_seed_every_answer_is_drawn_anew():
    async def go(warm):
        drawn = [await collect(warm, prefix(GARDEN, max_tokens=12)) for _ in range(3)]
        seeded = [await collect(warm, Prefix(GARDEN, (), 12, 5)) for _ in range(2)]
        return drawn, seeded

    with LlamaCppEndpoint(smollm2_path(), n_ctx=512, temperature=1.5) as warm:
        drawn, seeded = asyncio.run(go(warm))
    assert not drawn[0] == drawn[1] == drawn[2]
    assert seeded[0] == seeded[1]


@pytest.mark.slow
def test_the_end_of_the_turn_is_no_token(device, there):
    async def go():
        async with there:
            return [await collect(end, prefix(build("Say hi."), max_tokens=80)) for end in (device, there)]

    for tokens, failure in asyncio.run(go()):
        assert failure is None
        assert 0 < len(tokens) < 80
        assert "<|im_end|>" not in "".join(token.text for token in tokens)


@pytest.mark.slow
def test_a_hand_over_between_real_endpoints_is_exact(device, there):
    """A stream that moves from the device to the server: the server's tokens are those of a direct call."""
    rule = dc.MigrationRule(
        dc.CostModel(0.0, 0.0, 0.0, 1e-6),
        dc.LengthDistribution([60], [1]),
        dc.TTFTDistribution([0.2]),
        dc.DeviceProfile(200.0, 100.0),
    )

    async def go():
        async with there:
            live = stream(
                GARDEN, plan=dc.plan_device_only(), server=there, device=device, rule=rule, max_tokens=20, wait=False
            )
            tokens = [token async for token in live]
            at = live.record.migrated_at
            generated = [Token(token.index, token.text, token.id) for token in tokens]
            return live.record, generated, await collect(there, prefix(GARDEN, generated[:at], 20 - at))

    record, generated, (direct, failure) = asyncio.run(go())
    assert failure is None
    assert record.complete
    assert record.failures == []
    assert 0 < record.migrated_at < 20
    assert generated[record.migrated_at :] == direct


@pytest.mark.slow
def test_a_prefill_on_the_device_is_cancelled_in_the_middle_of_a_step(device):
    """A cancel that waited for the end of a step would take half of one, whatever the speed of the machine."""

    async def go():
        taken, began = [], time.perf_counter()
        await collect(device, prefix([5] * 2 * BATCH, max_tokens=1))
        step_s = (time.perf_counter() - began) / 2
        for i in range(7):
            tokens = device.generate(prefix(LONG, max_tokens=50))
            first = asyncio.ensure_future(anext(tokens))
            await asyncio.sleep(0.1 + 0.05 * i)
            assert not first.done()
            began = time.perf_counter()
            first.cancel()
            await asyncio.wait([first])
            taken.append(time.perf_counter() - began)
        after, failure = await collect(device, prefix(GARDEN, max_tokens=4))
        return np.median(taken) / step_s, after, failure

    fresh = asyncio.run(collect(device, prefix(GARDEN, max_tokens=4)))
    share, after, failure = asyncio.run(go())
    assert share < 1 / 8
    assert (after, failure) == fresh


@pytest.mark.slow
@pytest.mark.parametrize("local", [LlamaCppEndpoint], indirect=True)
def test_a_device_with_a_prefix_cache_goes_on_from_where_its_prefill_was_cancelled(local, device):
    """And says what it says when it reads all at once: a cancel leaves whole steps behind."""
    ids = [token.id for token in asyncio.run(collect(device, prefix(GARDEN, max_tokens=6)))[0]]
    head = [Token(i, "", id) for i, id in enumerate(ids)]
    whole = asyncio.run(collect(device, prefix(LONG, head, 4)))

    async def go(again):
        tokens = again.generate(prefix(LONG, max_tokens=50))
        assert tokens.prefilled is None
        first = asyncio.ensure_future(anext(tokens))
        while (tokens.prefilled or 0) < 4 * BATCH:
            await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.wait([first])
        assert tokens.prefilled is None
        assert 4 * BATCH <= again.confirmed < again.count(LONG)
        continued = await collect(again, prefix(LONG, head, 4))
        told = again.confirmed
        other, _ = await collect(again, prefix(GARDEN, max_tokens=6))
        return continued, told, [token.id for token in other]

    with local(n_ctx=1024, prefix_cache=True) as again:
        continued, told, other = asyncio.run(go(again))
    assert continued == whole
    # every token of the prefix once, and those that were written but the last, which nothing follows
    assert told == device.count(LONG) + len(head) + len(whole[0]) - 1
    assert other == ids


@pytest.mark.slow
def test_work_that_waits_is_cancelled_without_the_work_before_it(device):
    async def go():
        running = device.generate(prefix(LONG, max_tokens=5))
        first = asyncio.ensure_future(anext(running))
        await asyncio.sleep(0.05)
        waiting = asyncio.ensure_future(anext(device.generate(prefix(GARDEN))))
        await asyncio.sleep(0.05)
        began = time.perf_counter()
        waiting.cancel()
        await asyncio.wait([waiting])
        taken = time.perf_counter() - began
        still = not first.done()
        first.cancel()
        await asyncio.wait([first])
        return taken, still

    taken, still = asyncio.run(go())
    assert still
    assert taken < 0.5  # the work before it takes seconds


@pytest.mark.slow
def test_a_closed_device_refuses_and_ends_what_runs(local):
    async def go():
        async with local(n_ctx=1024) as endpoint:
            running = asyncio.ensure_future(collect(endpoint, prefix(LONG)))
            await asyncio.sleep(0.1)
        endpoint.close()
        return await running, await collect(endpoint, prefix([5, 6]))

    (tokens, cut), (_, refused) = asyncio.run(go())
    assert (tokens, type(cut), type(refused)) == ([], dc.CutError, dc.RefusedError)
    with pytest.raises(dc.InputError, match="at most 8192"):
        local(n_ctx=9000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "word"),
    [
        (prefix(LONG, max_tokens=600), "tokens of context, it has 1024"),
        (prefix(max_tokens=0), "max_tokens"),
        (prefix([]), "empty"),
        (prefix([49152]), "49151"),
    ],
)
def test_what_does_not_fit_the_device_is_refused(device, asked, word):
    tokens, failure = asyncio.run(collect(device, asked))
    assert tokens == []
    assert type(failure) is dc.RefusedError
    assert word in str(failure)


@pytest.mark.slow
def test_a_cancel_on_the_server_frees_its_slot(there):
    async def go():
        async with there:
            tokens = there.generate(prefix(LONG, max_tokens=50))
            first = asyncio.ensure_future(anext(tokens))
            await asyncio.sleep(0.1)
            first.cancel()
            await asyncio.wait([first])
            slots = await there._pool().get(f"{there.url}/slots")
            return [slot["is_processing"] for slot in slots.json()], there.unconfirmed

    busy, unconfirmed = asyncio.run(go())
    assert not any(busy)
    assert unconfirmed == 0


@pytest.mark.slow
def test_a_wrong_or_missing_key_is_refused_and_not_repeated(server):
    for key in (None, "sk-wrong-key"):
        with pytest.raises(dc.RefusedError, match="there: 401") as caught:
            LlamaServerEndpoint(server.url, api_key=key, name="there")
        assert "sk-wrong-key" not in "".join(traceback.format_exception(caught.value))
    assert KEY not in repr(server)
    command = Path(f"/proc/{server.pid}/cmdline").read_bytes() + Path(f"/proc/{server.pid}/environ").read_bytes()
    assert KEY.encode() not in command


@pytest.mark.slow
@pytest.mark.parametrize("continuation", ["completions", "prefix", "continue_final_message"])
def test_the_same_server_behind_the_openai_api(server, there, continuation):
    """Tokens as through the native API where the prompt is the same, and a turn that goes on."""

    async def go():
        options = {"continuation": continuation, "template": build("{prompt}"), "options": {"logprobs": True}}
        if continuation == "completions":
            options["options"] = {"logprobs": 1}
        async with there, OpenAIEndpoint("m", base_url=f"{server.url}/v1", api_key=KEY, **options) as endpoint:
            counting = build("Count from one to nine."), [Token(0, "1, 2, 3, 4,")]
            found = await collect(endpoint, prefix(*counting, max_tokens=6))
            native = await collect(there, prefix(*counting, max_tokens=6))
            wrong = OpenAIEndpoint("m", base_url=f"{server.url}/v1", api_key="sk-wrong-key")
            return found, native, (await collect(wrong, prefix()))[1]

    (tokens, failure), (native, _), refused = asyncio.run(go())
    assert failure is None
    assert "5" in "".join(token.text for token in tokens)
    assert tokens[0].index == 1
    if continuation == "completions":
        assert [token.text for token in tokens] == [token.text for token in native]
    assert "401" in str(refused)
    assert "sk-wrong-key" not in "".join(traceback.format_exception(refused))


@pytest.mark.slow
def test_a_probe_finds_how_a_real_server_continues(server):
    async def go():
        options = {"base_url": f"{server.url}/v1", "api_key": KEY, "continuation": "probe"}
        async with OpenAIEndpoint("m", **options) as endpoint:
            return await endpoint.probe(), endpoint.continues

    assert asyncio.run(go()) == ("continue_final_message", True)


@pytest.mark.slow
def test_stop_texts_end_a_real_answer(device, server):
    """Where each answer without them has them, also across the seam; and the work beyond them is counted."""

    async def go(endpoint):
        said = await collect(endpoint, prefix(GARDEN, max_tokens=16))
        texts = [token.text for token in said[0]]
        endpoint.stop = ("".join(texts[7:10]),)
        for begun in (0, 8):
            generation = endpoint.generate(prefix(GARDEN, said[0][:begun], 16 - begun))
            found = [token.text async for token in generation]
            assert found == texts[begun:7]
            assert generation.undelivered >= 10 - max(begun, 7)
        endpoint.stop = ()

    async def both():
        await go(device)
        async with LlamaServerEndpoint(server.url, api_key=KEY) as there:
            await go(there)
            assert there.unconfirmed == 0

    asyncio.run(both())
