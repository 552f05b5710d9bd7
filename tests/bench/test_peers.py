"""First token through a live stream and through LiteLLM, over httpx alone: the same server, on this machine."""

import asyncio
import json
import subprocess
import sys
import time

import httpx
import numpy as np

import disco_core as dc
from disco_core.endpoints.base import Prefix
from disco_core.endpoints.openai import OpenAIEndpoint
from tests.helpers import scripts
from tests.helpers.real_servers import interpreter, litellm_proxy

ROUNDS = 200
PROMPT = [{"role": "user", "content": "Why?"}]
BODY = {"model": "m", "messages": PROMPT, "max_tokens": 16, "stream": True}


async def first(tokens):
    began, at = time.perf_counter(), None
    async for _ in tokens:
        at = at or time.perf_counter()
    return at - began


async def plain(client, url):
    async with client.stream("POST", f"{url}/chat/completions", json=BODY) as response:
        async for line in response.aiter_lines():
            if '"content": " word"' in line:
                yield line


async def ours(url):
    found = []
    async with (
        httpx.AsyncClient(trust_env=False) as client,
        OpenAIEndpoint("m", base_url=url, name="server") as server,
        OpenAIEndpoint("m", base_url=url, name="device") as device,
    ):
        for _ in range(ROUNDS + 20):
            bare = await first(plain(client, url))
            direct = await first(server.generate(Prefix(PROMPT, (), 16)))
            plan = dc.plan_server_only()
            live = dc.stream(PROMPT, plan=plan, server=server, device=device, max_tokens=16, wait=False)
            found.append((direct - bare, await first(live) - bare))
    return found[20:]


def test_peers(benchmark):
    python = interpreter("DISCO_LITELLM", "litellm.proxy")
    with subprocess.Popen([sys.executable, scripts.path("answering.py")], stdout=subprocess.PIPE) as answering:
        try:
            url = f"http://127.0.0.1:{int(answering.stdout.readline())}/v1"
            with litellm_proxy(url, "none") as (proxy, key):
                command = [python, scripts.path("litellm_first_tokens.py"), url, proxy, key, str(ROUNDS)]
                theirs = json.loads(subprocess.run(command, capture_output=True, check=True).stdout.splitlines()[-1])
                found = benchmark.pedantic(lambda: asyncio.run(ours(url)), rounds=1)
        finally:
            answering.kill()
    names = "OpenAIEndpoint", "dc.stream", "litellm.acompletion", "LiteLLM's Router", "LiteLLM's proxy"
    both = np.hstack([found, theirs])
    benchmark.extra_info |= dict(zip(names, np.quantile(both, [0.5, 0.25, 0.75], axis=0).T.tolist(), strict=True))
