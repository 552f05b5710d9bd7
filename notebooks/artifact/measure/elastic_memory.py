"""What a process needs in memory to answer with levels of a model: run as a program, one process for each case.

    python -m artifact.measure.elastic_memory FOLDER WHAT CONTEXT     prints the bytes

Proportional set size: pages that processes share count in part, so no other one may have the levels in memory.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import psutil

from artifact.data import model
from artifact.errors import ArtifactError
from artifact.files import ROOT
from disco_core.endpoints.base import Endpoint, Prefix
from disco_core.endpoints.llama_cpp import LlamaCppEndpoint
from disco_core.systems.elastic import ElasticEndpoint, Level, load_levels

NO_MODEL, AS_STORED = "no model", "the whole model as stored"
RESIDENT, ON_DEMAND = "all levels in memory", "all levels, one at a time"
CASES = (NO_MODEL, AS_STORED, RESIDENT, ON_DEMAND)  # beside the percent of a level that is alone in memory
TOKENS = 8  # that each level answers


def bytes_of(folder: Path, what: str, context: int) -> int:
    """Bytes that a process has that answered in the case `what`, one of `CASES` or the percent of a level.

    ArtifactError, with its last line, if the process fails.
    """
    path = os.pathsep.join([str(ROOT), str(ROOT / "notebooks")])
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(folder), what, str(context)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ArtifactError(f"the process for the memory of {what!r} failed: {told}")
    return int(done.stdout.split()[-1])


async def _answers(end: Endpoint, prompt: str, times: int) -> None:
    for _ in range(times):
        async with aclosing(end.generate(Prefix(prompt, (), TOKENS))) as tokens:
            async for _ in tokens:
                pass


def _used() -> int:
    used = psutil.Process().memory_full_info()
    return int(getattr(used, "pss", used.uss))  # elsewhere than on Linux: what this process alone has


def _measured(levels: dict[int, Level], what: str, context: int) -> int:
    import llama_cpp  # noqa: F401  in every case

    prompt = model.build("What is a river?")
    if what == NO_MODEL:
        return _used()
    if what in (RESIDENT, ON_DEMAND):
        turn = iter(reversed(levels))  # the largest last, so that one at a time is that one, not the smallest
        with ElasticEndpoint(levels, lambda _: next(turn), resident=what == RESIDENT, n_ctx=context) as end:
            asyncio.run(_answers(end, prompt, len(levels)))
            return _used()
    path = model.smollm2_path() if what == AS_STORED else levels[int(what)].path
    with LlamaCppEndpoint(path, n_ctx=context) as end:
        asyncio.run(_answers(end, prompt, 1))
        return _used()


def main(given: Sequence[str]) -> None:
    """Print the bytes of one case."""
    folder, what, context = given
    print(_measured(load_levels(folder), what, int(context)))


if __name__ == "__main__":
    main(sys.argv[1:])
