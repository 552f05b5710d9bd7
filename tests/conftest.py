"""Settings of all tests: a hypothesis profile, the path of processes that tests start, and an option about skips."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# no deadline, since the machine also runs models; failures reproduce
settings.register_profile("disco", deadline=None, print_blob=True)
settings.load_profile("disco")

# Python processes that tests start find what the notebooks find
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1] / "notebooks")


@pytest.fixture(scope="session")
def levels_folder(tmp_path_factory):
    """A folder with levels of the device model, units as they are stored."""
    from tests.helpers.levels import write_levels

    return write_levels(tmp_path_factory.mktemp("levels"))


def pytest_runtest_setup(item):
    if item.get_closest_marker("mirror") and not os.environ.get("DISCO_TRACE_MIRROR"):
        pytest.skip("DISCO_TRACE_MIRROR names no mirror of the public traces")


def pytest_addoption(parser):
    parser.addoption(
        "--allow-skip",
        action="append",
        metavar="REASON",
        help="fail where a test is skipped for another reason than those named so; 'none' names none",
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """With --allow-skip, a test that is skipped for a reason that is not named fails the run."""
    reporter, allowed = session.config.pluginmanager.get_plugin("terminalreporter"), session.config.option.allow_skip
    if reporter is None or allowed is None:
        return
    reasons = {one.nodeid: str(one.longrepr[2]) for one in reporter.stats.get("skipped", [])}
    others = {test: why for test, why in reasons.items() if not any(one in why for one in allowed)}
    for test, why in others.items():
        reporter.write_line(f"\nskipped for a reason that --allow-skip does not name: {test}: {why}", red=True)
    if others and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
