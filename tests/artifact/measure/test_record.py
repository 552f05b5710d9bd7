"""A server of known service times under a virtual clock: its saturation is found, and TTFT is Lindley's recursion."""

import asyncio
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.data import traces
from artifact.errors import ArtifactError
from artifact.measure import record
from artifact.measure.texts import Texts
from disco_core.endpoints.base import Endpoint, Generation, Token
from disco_core.errors import InputError, RefusedError
from disco_core.workload import LengthDistribution
from tests.helpers.clock import run

SERVICE_S = 0.25


class Servers(Endpoint):
    """So many servers that take one request each, first come, first served; an answer's tokens come in its service.

    `sent` has the time at which each request came.
    """

    name = "servers"

    def __init__(self, servers=1, service_s=lambda prefix: SERVICE_S, refuses=10**9):
        self.free, self.service_s, self.refuses = asyncio.Semaphore(servers), service_s, refuses
        self.sent, self.running, self.most = [], 0, 0

    def generate(self, prefix):
        return Generation(self._tokens(prefix))

    async def _tokens(self, prefix):
        self.sent.append(asyncio.get_running_loop().time())
        if self.running >= self.refuses:
            raise RefusedError(self.name, "too many requests")
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async with self.free:
                yield Token(0, "thought", reasoning=True)  # not what a reader waits for
                yield Token(0, "")
                await asyncio.sleep(self.service_s(prefix))
                for k in range(prefix.max_tokens):
                    yield Token(k, "word ")
        finally:
            self.running -= 1


def some(n, tokens=3):
    return [record.Ask(f"prompt {k}", 10 + k, tokens) for k in range(n)]


async def asks(n):
    return some(n)


@pytest.mark.parametrize("servers", [1, 3, 4, 16])
def test_the_saturation_rate_is_that_of_the_servers_together(servers):
    async def go():
        return await record.saturation(Servers(servers), asks)

    steps = run(go())
    assert steps["rate"].max() == pytest.approx(servers / SERVICE_S, rel=0.1)
    assert steps["clients"].tolist() == [2**k for k in range(len(steps))]
    assert steps["clients"].iloc[-1] <= 8 * servers


def test_saturation_with_random_service_times_is_their_mean_rate():
    rng = np.random.default_rng(0)
    drawn = []

    def service_s(_):
        drawn.append(rng.exponential(SERVICE_S))
        return drawn[-1]

    async def go():
        return await record.saturation(Servers(1, service_s), asks, fewest=200)

    assert run(go())["rate"].max() == pytest.approx(1 / np.mean(drawn), rel=0.15)


def test_the_rate_of_a_closed_loop_leaves_out_the_time_in_which_not_all_clients_are_busy():
    async def go():
        endpoint = Servers(4)
        return await record.closed_loop(endpoint, some(22), 4), endpoint.most

    (rate, rows), most = run(go())
    assert rate == pytest.approx(4 / SERVICE_S)  # 22 / 4 waves take six services: 14.7 per second with the rest
    assert (len(rows), most) == (22, 4)


@given(
    st.lists(st.floats(0.001, 0.6), min_size=1, max_size=40),
    st.lists(st.floats(0.01, 0.9), min_size=40, max_size=40),
)
def test_ttft_under_load_is_lindleys_recursion(gaps, services):
    arrival_s = np.cumsum(gaps)
    times = {f"prompt {k}": one for k, one in enumerate(services)}
    rows = []

    async def go():
        endpoint = Servers(1, lambda prefix: times[prefix.prompt])
        await record.open_loop(endpoint, some(len(gaps)), arrival_s, rows.append)
        return endpoint.sent

    sent = run(go())
    assert np.allclose(sent, arrival_s)  # sent when due, whatever is running
    free = 0.0
    expected = []
    for at, service_s in zip(arrival_s, services, strict=False):
        free = max(free, at) + service_s
        expected.append(free - at)
    rows.sort(key=lambda row: row["prompt_tokens"])
    assert np.allclose([row["ttft_s"] for row in rows], expected)
    assert np.allclose([row["arrival_s"] for row in rows], arrival_s)
    assert {row["output_tokens"] for row in rows} == {4}  # the token without text is one all the same


def test_mean_wait_is_that_of_an_m_d_1_queue():
    rng, load, n = np.random.default_rng(1), 0.7, 40_000
    rows = []

    async def go():
        at_s = np.cumsum(rng.exponential(SERVICE_S / load, n))
        await record.open_loop(Servers(), some(n, 1), at_s, rows.append)

    run(go())
    waited = np.mean([row["ttft_s"] for row in rows]) - SERVICE_S
    assert waited == pytest.approx(load * SERVICE_S / (2 * (1 - load)), rel=0.1)  # Pollaczek and Khinchine


def test_what_fails_has_a_row_without_a_time_and_ends_the_search():
    async def go():
        return await record.saturation(Servers(4, refuses=3), asks), await record.closed_loop(
            Servers(refuses=1), some(4), 2
        )

    steps, (_, rows) = run(go())
    assert steps["clients"].tolist() == [1, 2, 4]
    assert steps["failed"].iloc[-1] > 0
    assert steps["rate"].max() >= 2 / SERVICE_S
    failed = [row for row in rows if row["failure"]]
    assert failed
    assert {row["failure"] for row in failed} == {"servers: too many requests"}
    assert all(row["ttft_s"] is row["done_s"] is row["output_tokens"] is None for row in failed)


def test_a_server_that_refuses_everything_is_an_error_in_one_line():
    async def go():
        await record.saturation(Servers(refuses=0), asks)

    with pytest.raises(ArtifactError, match=r"^no rate can be told: 24 of 24 requests failed.*too many requests$"):
        run(go())


def test_an_answer_without_text_is_no_answer():
    async def go():
        return await record.answered(Servers(), record.Ask("prompt", 5, 0), 0.0, 0.0)

    row = run(go())
    assert row["ttft_s"] is None
    assert "without text" in row["failure"]


@pytest.mark.parametrize("name", traces.patterns())
def test_arrivals_are_the_pattern_s_at_the_wanted_rate(name):
    pattern = traces.pattern(name)
    n = 400
    at_s = record.arrivals(pattern, n, 8.0, np.random.default_rng(2))
    assert (np.diff(at_s) >= 0).all()
    assert 0 <= at_s[0] <= at_s[-1] <= n / 8.0
    tenths = np.histogram(at_s, 10, (0, n / 8.0))[0] / n
    edges = np.linspace(0, pattern.counts.size, 11)
    cumulated = np.interp(edges, np.arange(pattern.counts.size + 1), np.append(0, pattern.counts.cumsum()))
    assert np.abs(tenths - np.diff(cumulated) / pattern.n).max() < 0.06


@given(st.lists(st.integers(1, 900), min_size=1, max_size=50), st.integers(1, 60), st.integers(1, 1000))
def test_lengths_are_the_quantiles_of_the_distribution(lengths, n, longest):
    found = record.spread(LengthDistribution.of(lengths), n, longest, np.random.default_rng(0))
    ordered = np.sort(lengths)
    expected = [min(ordered[int(np.ceil((k + 0.5) / n * len(lengths) - 1e-9)) - 1], longest) for k in range(n)]
    assert sorted(found) == sorted(expected)


class Words(Endpoint):
    """Counts words, and three for its chat template."""

    def count(self, prompt):
        return len(prompt.split()) + 3

    def apply_chat_template(self, prompt):
        return prompt[0]["content"]


def test_prompts_have_the_wanted_lengths_and_begin_differently():
    texts = Texts(Words(), np.random.default_rng(0))
    wanted = [*range(4, 60), 300, 5000]
    found = asyncio.run(texts.asks(wanted, [7] * len(wanted)))
    assert [ask.prompt_tokens for ask in found] == wanted
    assert [len(ask.prompt.split()) + 3 for ask in found] == wanted
    begins = Counter(" ".join(ask.prompt.split()[:4]) for ask in found)
    assert max(begins.values()) == 1
    assert texts.ask(1, 1).prompt_tokens == 4  # no shorter one exists


@pytest.mark.parametrize("rate", [0.0, -1.0, np.nan])
def test_a_rate_is_above_0(rate):
    with pytest.raises(InputError, match="rate must"):
        record.arrivals(traces.pattern("azure-conv"), 5, rate, np.random.default_rng(0))
