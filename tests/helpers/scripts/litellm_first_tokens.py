"""In a Python with LiteLLM: seconds to the first token by turns, through httpx alone and through each of its ways.

Arguments: the address of a server, the address and key of LiteLLM's proxy before it, and how often.
"""

import asyncio
import json
import sys
import time

import httpx
import litellm

address, proxy, key, rounds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
BODY = {"model": "m", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 16, "stream": True}
HOW = {"model": "openai/m", "api_base": address, "api_key": "none"}
router = litellm.Router([{"model_name": "m", "litellm_params": HOW}])


async def plain(client, url, headers):
    began, first = time.perf_counter(), None
    async with client.stream("POST", f"{url}/chat/completions", json=BODY, headers=headers) as response:
        async for line in response.aiter_lines():
            if first is None and '"content": " word"' in line.replace('":"', '": "'):
                first = time.perf_counter() - began
    return first


async def through(request):
    began, first = time.perf_counter(), None
    async for chunk in await request:
        if first is None and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - began
    return first


async def main():
    found = []
    async with httpx.AsyncClient(trust_env=False) as client:
        for _ in range(rounds + 20):
            bare = await plain(client, address, {})
            direct = await through(litellm.acompletion(**BODY | HOW))
            routed = await through(router.acompletion(**BODY))
            proxied = await plain(client, proxy, {"Authorization": f"Bearer {key}"})
            found.append((direct - bare, routed - bare, proxied - bare))
    print(json.dumps(found[20:]))


asyncio.run(main())
