"""A prompt may be messages: each endpoint puts them in its model's chat template, and hand-overs continue it."""

import asyncio
import json

import numpy as np
import pytest

import disco_core as dc
from artifact.data.model import build, smollm2_path
from disco_core.endpoints.base import Prefix, Token
from disco_core.endpoints.llama_cpp import LlamaCppEndpoint
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from disco_core.endpoints.local_server import LocalServer
from disco_core.endpoints.openai import OpenAIEndpoint
from tests.helpers.clock import run
from tests.helpers.loopback import FACTS, KEY, chunk, collect, events, piece, prefix, reply, serving, through_openai
from tests.helpers.replay import Failure, ReplayEndpoint

CHAT = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "What is the colour of grass?"},
    {"role": "assistant", "content": "Green."},
    {"role": "user", "content": "And of the sky?"},
]
WORDS = sum(len(one["content"]) for one in CHAT) + len(CHAT) - 1


# --- what a stream makes of them


def test_both_endpoints_are_given_the_messages_whatever_their_vocabularies():
    server = ReplayEndpoint(0.25, [0.125], 8, fail=Failure.DIE, at=3, vocabulary="other")
    device = ReplayEndpoint(0.25, [0.125], 8)

    async def go():
        live = dc.stream(CHAT, plan=dc.plan_server_only(), server=server, device=device, max_tokens=8, wait=False)
        return [token.id async for token in live], live.record

    ids, record = run(go())
    assert ids == list(range(8))
    assert [end.seen[0].prompt for end in (server, device)] == [CHAT, CHAT]
    assert record.prefill == [WORDS, WORDS + len("0 1 2 ")]


def test_messages_are_copied():
    """What is changed after the call does not reach the endpoints."""
    server, device = (ReplayEndpoint(0.25, [0.125], 3) for _ in range(2))
    mine = [dict(one) for one in CHAT]
    live = dc.stream(mine, plan=dc.plan_server_only(), server=server, device=device, max_tokens=3, wait=False)
    mine[-1]["content"] = "And of the sea?"
    mine.append({"role": "user", "content": "Now?"})

    async def go():
        return [token.id async for token in live]

    assert run(go()) == [0, 1, 2]
    assert server.seen[0].prompt == CHAT


class Opens(ReplayEndpoint):
    """Adds the open turn to the messages it was given, as one does before a request, and fails."""

    async def generate(self, prefix):
        prefix.prompt.append({"role": "assistant", "content": ""})
        raise dc.CutError(self.name, "gone")
        yield


class Shortens(dc.MigrationRule):
    def prompt_for(self, end, prompt):
        if end is dc.End.DEVICE:
            prompt[-1]["content"] = prompt[-1]["content"][:3]
        return prompt


def test_what_an_endpoint_or_a_rule_does_to_messages_the_other_endpoint_does_not_see():
    cost, lengths = dc.CostModel(0.0, 0.0, 0.0, 1e-6), dc.LengthDistribution([60], [1])
    rule = Shortens(cost, lengths, dc.TTFTDistribution([0.1]), dc.DeviceProfile(500.0, 25.0))
    for server, moves in ((Opens(0.25, [0.125], 8), None), (ReplayEndpoint(0.25, [0.125], 8, at=3), rule)):
        server.fail = Failure.DIE if moves else None
        device = ReplayEndpoint(0.25, [0.125], 8)

        async def go(server=server, device=device, moves=moves):
            ends = {"server": server, "device": device}
            live = dc.stream(CHAT, plan=dc.plan_server_only(), **ends, rule=moves, max_tokens=8, wait=False)
            return [token.id async for token in live], live.record.prefill

        ids, prefill = run(go())
        assert ids == list(range(8))
        if moves:
            assert server.seen[0].prompt == CHAT
            assert device.seen[0].prompt == [*CHAT[:3], CHAT[3] | {"content": "And"}]
            assert prefill == [WORDS, WORDS - len(CHAT[3]["content"]) + 3 + 3]
        else:
            assert device.seen[0].prompt == CHAT


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (CHAT[0], "a list of messages"),
        ([*CHAT, "and now?"], "a list of messages"),
        (["hi", CHAT[0]], "a list of messages"),
        ([{"role": "user"}], "a role and a content"),
        ([{"role": "user", "content": None}], "whose content is a text, got None"),
        ([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "whose content is a text"),
        ([CHAT[0], {"role": "user", "content": "hi", "name": "Ann"}], "alone, got one with role, content, name"),
        ([{}], "alone, got one with nothing"),
        ([{"role": "developer", "content": "hi"}], "a role of system, user, assistant, got 'developer'"),
        ([{"role": "\ud800", "content": "hi"}], "a role of system, user, assistant"),
        ([{"role": ["user"], "content": "hi"}], "a role of system, user, assistant"),
        ((("hi",), "such as")),
        ([{"role": "user", "content": " "}], "not be empty"),
        (CHAT[:3], "not end with the assistant's"),
        ([{"role": "user", "content": "\ud800"}], "a list of messages"),
    ],
)
def test_what_are_no_messages_is_named_at_once(bad, word):
    server, device = (ReplayEndpoint(0.25, [0.125], 3) for _ in range(2))
    with pytest.raises(dc.InputError, match=f"^prompt must .*{word}"):
        dc.stream(bad, plan=dc.plan_server_only(), server=server, device=device)


def test_an_endpoint_that_cannot_use_messages_is_left_for_the_other():
    """A server whose template knows no system message; the count is an estimate then."""

    def answer(handler):
        reply(handler, {"error": {"code": 500, "message": "System role not supported"}}, status=500)

    async def go(url):
        device = ReplayEndpoint(0.02, [0.001], 3, vocabulary="other", name="device")
        async with LlamaServerEndpoint(url, name="server") as server:
            live = dc.stream(CHAT, plan=dc.plan_server_only(), server=server, device=device, max_tokens=3, wait=False)
            ids = [token.id async for token in live]
            return ids, live.record, server.estimated

    with serving(answer, FACTS) as url:
        ids, record, estimated = asyncio.run(go(url))
    assert ids == [0, 1, 2]
    assert isinstance(record.failures[0], dc.RefusedError)
    assert "System role not supported" in str(record.failures[0])
    assert estimated > 0


# --- what each kind of endpoint makes of them


def test_the_native_server_is_asked_for_its_template_once():
    asked = []

    def template(question):
        asked.append(question)
        return {"prompt": "<s>" + "|".join(one["content"] for one in question["messages"]) + "<a>"}

    sent = []

    def answer(handler):
        sent.append(handler.asked)
        events(piece("b", [98], 1), piece("", [], 1, "eos"))(handler)

    async def go(url):
        async with LlamaServerEndpoint(url, name="there") as endpoint:
            count = endpoint.count(CHAT)
            return count, *await collect(endpoint, Prefix(CHAT, (Token(0, "a", 97),), 9))

    roomy = {"/props": {"default_generation_settings": {"n_ctx": 512}}}
    with serving(answer, FACTS | roomy | {"/apply-template": template}) as url:
        count, tokens, failure = asyncio.run(go(url))
    read = "<s>" + "|".join(one["content"] for one in CHAT) + "<a>"
    assert failure is None
    assert asked == [{"messages": CHAT}]
    assert count == len(read)
    assert sent[0]["prompt"] == [*read.encode(), 97]
    assert tokens == [Token(1, "b", 98)]


@pytest.mark.parametrize("continuation", ["none", "prefix", "continue_final_message"])
def test_chat_sends_them_as_they_are_and_the_open_turn_behind_them(continuation):
    asked = []

    def answer(handler):
        asked.append(handler.asked)
        events(chunk(" blue", reason="stop"), b"[DONE]")(handler)

    begun = [Token(0, "It is")] if continuation != "none" else []
    options = {"continuation": continuation, "template": "<u>{prompt}<a>", "count_tokens": len}
    tokens, failure, endpoint = through_openai(answer, prefix(CHAT, begun), **options)
    assert failure is None
    assert [token.text for token in tokens] == [" blue"]
    messages = asked[0]["messages"]
    assert messages[:4] == CHAT
    assert [(one["role"], one["content"]) for one in messages[4:]] == [("assistant", "It is")] * len(begun)
    assert endpoint.count(CHAT) == WORDS
    assert OpenAIEndpoint("m", api_key=KEY).count(CHAT) == -(-WORDS // 4)


def test_raw_completions_take_a_text_only():
    tokens, failure, _ = through_openai(None, prefix(CHAT), continuation="completions")
    assert tokens == []
    assert isinstance(failure, dc.RefusedError)
    assert "the prompt must be a text, got" in str(failure)


# --- the real model


@pytest.fixture(scope="module")
def ends():
    with (
        LocalServer(smollm2_path(), api_key=KEY, n_ctx=1024) as server,
        LlamaCppEndpoint(smollm2_path(), n_ctx=1024, name="device") as device,
    ):
        yield server, device


@pytest.mark.slow
def test_both_endpoints_of_the_model_build_the_same_prompt_and_so_does_the_servers_chat(ends):
    """The server's own chat API is asked for tokens, so that its template is held against ours from outside."""
    server, device = ends

    async def go():
        there = LlamaServerEndpoint(server.url, api_key=KEY)
        chat = OpenAIEndpoint("m", base_url=f"{server.url}/v1", api_key=KEY, options={"logprobs": True})
        async with there, chat:
            for messages in (CHAT, CHAT[1:2], [{"role": "user", "content": "Größe? 🙂 <b>\"'</b>\n\n"}]):
                text = there._template(json.dumps(messages))
                assert device._template(json.dumps(messages)) == text
                assert device.count(messages) == there.count(messages) == device.count(text)
                answers = [await collect(end, prefix(messages, max_tokens=12)) for end in (there, chat)]
                answers.append(await collect(there, prefix(text, max_tokens=12)))
                assert [failure for _, failure in answers] == [None] * 3
                native, through_chat, as_text = ["".join(one.text for one in tokens) for tokens, _ in answers]
                assert native == through_chat == as_text
                assert chat.usage[-1][0] == there.count(messages)
                local, failure = await collect(device, prefix(messages, max_tokens=12))
                assert failure is None
                assert (local, None) == await collect(device, prefix(text, max_tokens=12))

    asyncio.run(go())


@pytest.mark.slow
def test_an_answer_to_messages_migrates_and_continues_exactly(ends):
    server, device = ends
    rule = dc.MigrationRule(
        dc.CostModel(0.0, 0.0, 0.0, 1e-6),
        dc.LengthDistribution([60], [1]),
        dc.TTFTDistribution([0.1]),
        dc.DeviceProfile(100.0, 100.0),
    )
    messages = [CHAT[0] | {"content": "You are a gardener."}, {"role": "user", "content": "Describe a garden."}]

    async def go():
        async with LlamaServerEndpoint(server.url, api_key=KEY) as there:
            live = dc.stream(
                messages,
                plan=dc.plan_device_only(),
                server=there,
                device=device,
                rule=rule,
                max_tokens=40,
                wait=False,
            )
            tokens = [token async for token in live]
            at = live.record.migrated_at
            head = tuple(Token(token.index, token.text, token.id) for token in tokens[:at])
            direct, failure = await collect(there, Prefix(messages, head, 40 - at))
            return live.record, tokens, direct, failure

    record, tokens, direct, failure = asyncio.run(go())
    assert (record.failures, record.refusals, failure) == ([], [], None)
    at = record.migrated_at
    assert 0 < at < len(tokens)
    assert [token.id for token in tokens[at:]] == [token.id for token in direct]
    assert record.prefill == [device.count(messages) + at, device.count(messages)]


@pytest.mark.slow
def test_a_model_without_a_template_and_one_that_objects_refuse(ends, monkeypatch):
    device = ends[1]

    def answered(template):
        monkeypatch.setattr(device._llama, "metadata", {"tokenizer.chat_template": template} if template else {})
        vars(device).pop("_chat", None)
        device._template.cache_clear()
        return device.count(CHAT), *asyncio.run(collect(device, prefix(CHAT)))

    try:
        for template, word in (
            (None, "has no chat template"),
            ("{{ raise_exception('System role not supported') }}", "System role not supported"),
            ("{% for %}", "does not take these messages"),
        ):
            count, tokens, failure = answered(template)
            assert (count, tokens) == (-(-WORDS // 4), [])
            assert isinstance(failure, dc.RefusedError)
            assert word in str(failure)
    finally:
        vars(device).pop("_chat", None)
        device._template.cache_clear()
    assert np.isfinite(device.count(build("Still here?")))
