"""Servers that others wrote, unmodified, in processes of their own."""

import contextlib
import os
import secrets
import subprocess
import tempfile
import time
from pathlib import Path

import httpx
import pytest

from tests.helpers.loopback import free_port

START_S = 120.0


def interpreter(variable, module):
    """The Python that an environment variable names, if it has the module; otherwise the test is skipped."""
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} names no Python that has {module}")
    found = subprocess.run([path, "-P", "-c", f"import {module}"], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"{variable}: {path} cannot import {module}: {found.stderr.strip().splitlines()[-1]}")
    return path


@contextlib.contextmanager
def started(command, health, environment=()):
    """A server in its own session, once it is healthy; it is killed at the end, with its children."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **dict(environment)}, start_new_session=True
        )
        try:
            deadline = time.monotonic() + START_S
            while not healthy(health):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    pytest.fail(f"{command[:4]} did not start: {log.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.1)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


def healthy(url):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
    return False


@contextlib.contextmanager
def llama_cpp_python(model_path, n_ctx=1024):
    """The base URL of llama-cpp-python's server, which does one request at a time."""
    python, port = interpreter("DISCO_LLAMA_CPP_SERVER", "llama_cpp.server.app"), free_port()
    options = {"model": model_path, "host": "127.0.0.1", "port": port, "n_ctx": n_ctx, "n_threads": 1}
    command = [python, "-P", "-m", "llama_cpp.server"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with started(command, f"http://127.0.0.1:{port}/v1/models"):
        yield f"http://127.0.0.1:{port}/v1"


@contextlib.contextmanager
def litellm_proxy(api_base, api_key):
    """The base URL and the key of LiteLLM's proxy in front of another server."""
    python, port, key = interpreter("DISCO_LITELLM", "litellm.proxy"), free_port(), f"sk-{secrets.token_hex(32)}"
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        model = f'{{model: openai/m, api_base: "{api_base}", api_key: "{api_key}"}}'
        config.write_text(f"model_list:\n  - model_name: m\n    litellm_params: {model}\n")
        command = [str(Path(python).with_name("litellm")), "--config", str(config), "--port", str(port)]
        environment = {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": ""}
        with started([*command, "--host", "127.0.0.1"], f"http://127.0.0.1:{port}/health/liveliness", environment):
            yield f"http://127.0.0.1:{port}/v1", key
