"""Start a local server, print its process, and wait."""

import time

from artifact.data.model import smollm2_path
from disco_core.endpoints.local_server import LocalServer

with LocalServer(smollm2_path()) as server:
    print(server.pid, flush=True)
    time.sleep(60)
