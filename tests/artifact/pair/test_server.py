"""Requests to a server under a virtual clock: when they are sent, and that TTFT counts from when they were due."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact.pair.progress import Progress
from artifact.pair.server import FAILURES, measure, schedule
from disco_core.endpoints.base import Endpoint, Generation, Token
from disco_core.errors import RefusedError
from tests.helpers.clock import run

PROMPT = [{"role": "user", "content": "Why?"}]


class OneSlot(Endpoint):
    """A server that does one request at a time: the first token after `service_s`, then one each `gap_s`."""

    name = "one"

    def __init__(self, service_s, gap_s=0.0, n=1, fails=lambda k: False, on=lambda k: None):
        self.service_s, self.gap_s, self.n, self.fails, self.on = service_s, gap_s, n, fails, on
        self.asked, self.slot = [], asyncio.Lock()

    def generate(self, prefix):
        return Generation(self._tokens(prefix))

    async def _tokens(self, prefix):
        k = len(self.asked)
        self.asked.append(asyncio.get_running_loop().time())
        self.on(k)
        async with self.slot:
            await asyncio.sleep(self.service_s[k] if np.ndim(self.service_s) else self.service_s)
            if self.fails(k):
                raise RefusedError(self.name, "429: too many requests")
            for index in range(min(self.n, prefix.max_tokens)):
                await asyncio.sleep(self.gap_s if index else 0)
                yield Token(index, f" {index}")


def measured(make, n, due_s=None, limit_s=1e9, progress=None):
    async def go():
        endpoint = make()
        done = await measure(endpoint, [(PROMPT, 7)] * n, due_s, 5, limit_s, progress or Progress(quiet=True))
        return done, endpoint

    return run(go())


@settings(max_examples=60)
@given(st.data())
def test_open_loop_times_are_lindleys(data):
    n = data.draw(st.integers(1, 30))
    gaps = data.draw(st.lists(st.integers(0, 40), min_size=n, max_size=n))
    service = np.array(data.draw(st.lists(st.integers(1, 40), min_size=n, max_size=n))) / 8
    due = np.cumsum(gaps) / 8  # eighths, so that sums are exact
    found, endpoint = measured(lambda: OneSlot(service), n, due)
    assert endpoint.asked == due.tolist()
    left, wait = 0.0, []
    for arrives, takes in zip(due, service, strict=True):
        left = max(left, arrives) + takes
        wait.append(left - arrives)
    np.testing.assert_allclose(found.answers["ttft_s"], wait, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(found.answers["arrival_s"], due)
    assert (found.answers["failure"] == "").all()
    assert (found.sent, found.ended) == (n, "")


def test_closed_loop_sends_the_next_when_one_has_ended():
    found, endpoint = measured(lambda: OneSlot(1.0, gap_s=0.25, n=5), 6)
    assert endpoint.asked == [0, 2, 4, 6, 8, 10]
    assert found.answers["ttft_s"].tolist() == [1.0] * 6
    assert found.answers["output_tokens"].tolist() == [5] * 6
    assert found.answers["prompt_tokens"].tolist() == [7] * 6
    assert found.rate == pytest.approx(4.0)


@pytest.mark.parametrize("due_s", [None, np.arange(20.0)])
def test_no_request_is_sent_after_the_limit_and_those_that_run_are_awaited(due_s):
    found, endpoint = measured(lambda: OneSlot(0.75, gap_s=0.25, n=2), 20, due_s, limit_s=4.5)
    assert endpoint.asked == [0, 1, 2, 3, 4]
    assert found.answers["ttft_s"].tolist() == [0.75] * 5
    assert found.sent == 5


def test_failures_are_rows_with_their_reason():
    found, _ = measured(lambda: OneSlot(1.0, fails=lambda k: k % 3 == 1), 45)
    assert found.answers["ttft_s"].isna().tolist() == [False, True, False] * 15
    assert found.answers["failure"].tolist() == ["", "one: 429: too many requests", ""] * 15
    assert found.answers["output_tokens"].tolist() == [1, 0, 1] * 15
    assert found.ended == ""


def test_an_answer_without_a_token_is_a_failure():
    found, _ = measured(lambda: OneSlot(1.0, n=0), 2)
    assert found.answers["failure"].tolist() == ["one: it answered without a token"] * 2


@pytest.mark.parametrize("due_s", [None, np.arange(50) * 2.0])
def test_many_failures_in_a_row_end_it(due_s):
    found, endpoint = measured(lambda: OneSlot(1.0, fails=lambda k: k >= 5), 50, due_s)
    assert len(found.answers) == len(endpoint.asked) == 5 + FAILURES
    assert found.ended == f"{FAILURES} requests in a row failed, the last with: one: 429: too many requests"


@pytest.mark.parametrize(("due_s", "answered"), [(None, 12), (np.arange(50) / 2, 6)])
def test_an_interrupt_keeps_the_answers_and_sends_no_more(due_s, answered):
    progress = Progress(quiet=True)
    on = lambda k: progress.interrupt() if k == 12 else None  # noqa: E731
    found, endpoint = measured(lambda: OneSlot(0.99, on=on), 50, due_s, progress=progress)
    assert len(endpoint.asked) == found.sent == 13
    assert found.answers["ttft_s"].notna().sum() == len(found.answers) == answered
    assert found.ended == "interrupted"


@pytest.mark.parametrize("arrivals", [None, "azure-conv"])
def test_a_schedule_has_its_rate(arrivals):
    rng = np.random.default_rng(0)
    due_s = schedule(4.0, arrivals, 2_000, 1e9, rng)
    assert due_s[0] == 0
    assert (np.diff(due_s) >= 0).all()
    assert due_s.size == 2_000
    assert 1_999 / due_s[-1] == pytest.approx(4.0, rel=0.1 if arrivals is None else 1e-9)
    assert schedule(4.0, arrivals, 2_000, 30.0, np.random.default_rng(0)).tolist() == due_s[due_s < 30].tolist()
    if arrivals is None:  # a Poisson process: gaps have the standard deviation of their mean
        assert np.std(np.diff(due_s)) == pytest.approx(0.25, rel=0.1)
