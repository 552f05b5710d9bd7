"""`--allow-skip` fails a run in which a test is skipped for a reason that is not named."""

import subprocess
import sys

import pytest

from artifact.files import ROOT

SKIPPED = 'import pytest\n\n\ndef test_that_is_skipped():\n    pytest.skip("no package for it")\n'


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], 0),
        (["--allow-skip=no package"], 0),
        (["--allow-skip=none"], 1),
        (["--allow-skip=a", "--allow-skip=no p"], 0),
    ],
)
def test_a_skip_must_be_named(tmp_path, options, code):
    path = tmp_path / "test_skipped.py"
    path.write_text(SKIPPED)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", f"--rootdir={tmp_path}", *options, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout
    assert ("skipped for a reason that --allow-skip does not name" in done.stdout) == bool(code)
