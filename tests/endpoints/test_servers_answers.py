"""What real servers send, once to the endpoint alone: bytes over a loopback socket, whole and one by one."""

import asyncio
import time

import pytest

from disco_core.endpoints.llama_server import LlamaServerEndpoint
from disco_core.endpoints.openai import OpenAIEndpoint
from tests.helpers.loopback import FACTS, serving
from tests.helpers.server_cases import CASES


async def answered(case, url):
    """Tokens, failure and generation of one answer."""
    common = {"name": "there", "deadline_s": 10.0} | case.options
    home = LlamaServerEndpoint(url, **common) if case.native else OpenAIEndpoint("m", base_url=f"{url}/v1", **common)
    async with home:
        generation, tokens = home.generate(case.prefix), []
        try:
            async for token in generation:
                tokens.append(token)
        except Exception as error:
            return tokens, error, generation
        return tokens, None, generation


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.name}")
def test_an_endpoint_makes_of_it_what_is_right(case, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    asked = []

    def answer(handler):
        asked.append((handler.asked, dict(handler.headers)))
        case.answer(handler)

    began = time.monotonic()
    with serving(answer, FACTS if case.native else None) as url:
        tokens, failure, generation = asyncio.run(answered(case, url))
    assert tuple(token.text for token in tokens if not token.reasoning) == case.texts
    assert tuple(token.text for token in tokens if token.reasoning) == case.reasoning
    assert type(failure) is (case.failure or type(None)), repr(failure)
    for word in case.words:
        assert word in str(failure)
    if failure is not None:
        assert str(failure).startswith("there: ")
        assert failure.__context__ is None
    if not case.before:
        assert generation.undelivered == case.undelivered
    first = len(case.generated)
    assert [token.index for token in tokens if not token.reasoning] == [*range(first, first + len(case.texts))]
    assert "authorization" not in {name.lower() for name in asked[0][1]}
    assert case.request.items() <= asked[0][0].items()
    assert time.monotonic() - began < 5
