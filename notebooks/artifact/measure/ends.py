"""The two live endpoints that are measured, and the prompts sent to them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pandas as pd

from artifact.data import model, traces
from disco_core.endpoints.base import Endpoint
from disco_core.endpoints.llama_cpp import LlamaCppEndpoint
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from disco_core.endpoints.local_server import LocalServer
from disco_core.endpoints.openai import OpenAIEndpoint
from disco_core.errors import InputError

CONTEXT = 1024  # context size of each endpoint: tokens of prompt and answer


@contextmanager
def ends(
    server: str = "local", *, prefix_cache: bool = False, context: int = CONTEXT
) -> Iterator[tuple[Endpoint, Endpoint]]:
    """The server and the device, ready to answer; the processes started for them end with the block.

    prefix_cache  whether they use one
    context       context size of each: tokens of prompt and answer
    server        "local": llama.cpp's server, in a separate process; "openai:<model>": a server with OpenAI's API,
                  its key in OPENAI_API_KEY, its address in OPENAI_BASE_URL
    InputError for another name; EndpointError if the server is not available.
    """
    is_server(server)
    with ExitStack() as stack:
        path = model.smollm2_path()
        device = stack.enter_context(LlamaCppEndpoint(path, n_ctx=context, name="device", prefix_cache=prefix_cache))
        if server == "local":
            local = stack.enter_context(LocalServer(path, n_ctx=context))
            yield LlamaServerEndpoint(local.url, name="server", prefix_cache=prefix_cache), device
        else:
            name, count = server.removeprefix("openai:"), model.count_tokens  # the API does not expose its tokenizer
            yield OpenAIEndpoint(name, template=model.TEMPLATE, count_tokens=count, name="server"), device


def is_server(name: str) -> str:
    """The name itself; InputError unless `ends` accepts it."""
    if name != "local" and not (name.startswith("openai:") and name != "openai:"):
        raise InputError(f'server must be "local" or "openai:<model>", got {name!r:.80}')
    return name


def prompts(longest: int = 10**6) -> pd.DataFrame:
    """The artifact's prompts of up to `longest` tokens, with a column `built`: the prompt in the chat template.

    InputError if all are longer.
    """
    table = traces.table("prompts")
    table = table[table["tokens"] <= longest].reset_index(drop=True)
    if table.empty:
        raise InputError(
            f"no prompt has up to {longest} tokens; the shortest has {traces.table('prompts').tokens.min()}"
        )
    return table.assign(built=[model.build(text) for text in table["prompt"]])
