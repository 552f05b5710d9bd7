"""The exhibits of `make quick`, which the tests of notebooks check instead of executing each notebook again."""

import os
import subprocess

import pytest

from artifact.files import BUILD, ROOT


@pytest.fixture(scope="session")
def quick():
    """The folder of exhibits of `make quick`, which first renders those that are older than their sources."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", "quick"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"make quick failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}", pytrace=False)
    return BUILD / "quick" / "figures"
