"""What the notebooks read of the tables: services, lengths, devices, arrivals, prompts."""

from collections.abc import Callable

import numpy as np
import pytest

import disco_core as dc
from artifact.data import model, traces


def test_every_service_has_a_distribution_and_prices() -> None:
    names = traces.services()
    papers = {traces.service(name).paper_service for name in names}
    assert papers == {"GPT-4o-mini", "DeepSeek-V2.5", "LLaMA-3-70B-Instruct", "Command", None}
    for name in names:
        found = traces.service(name)
        assert found.n == sum(n for n, _ in found.hosts.values())
        assert 0 < found.price_in <= found.price_out < 1e-4
        assert found.ttft.quantile(0.5) < found.ttft.mean < found.ttft.quantile(1.0)
    assert len(traces.service("llama-3-70b").hosts) == 7
    assert "as parsed" in traces.service("gpt-4o-mini").source
    assert "as parsed" in traces.service("gpt-4o-mini", source="public").source


def test_the_pool_is_the_mixture_of_its_hosts() -> None:
    pool = traces.service("llama-3-70b")
    mean = sum(n * ttft.mean for n, ttft in pool.hosts.values()) / pool.n
    assert pool.ttft.mean == pytest.approx(mean)
    series = traces.table("ttft_series").set_index("service")
    for name in ("llama-3-70b", "deepseek-chat", "command-r"):
        assert traces.service(name).ttft.mean == pytest.approx(series.loc[name, "mean_s"], rel=0.006)
        assert traces.service(name).ttft.quantile(0.99) == pytest.approx(series.loc[name, "p99_s"], abs=1e-4)


def test_resampling_draws_hosts_and_repeats_with_its_seed() -> None:
    pool, single = traces.service("llama-3-70b"), traces.service("command-r")
    draws = [pool.resample(np.random.default_rng(i)).mean for i in range(40)]
    assert draws[:5] == [pool.resample(np.random.default_rng(i)).mean for i in range(5)]
    alone = pool.ttft
    plain = [dc.TTFTDistribution(alone.sample(pool.n, np.random.default_rng(i))).mean for i in range(40)]
    assert np.std(draws) > np.std(plain)  # hosts differ more than requests do
    replicate = single.resample(np.random.default_rng(1))
    assert replicate.values_s.size == single.n
    assert set(replicate.values_s) <= set(single.ttft.values_s)


def test_lengths_and_devices() -> None:
    for kind in ("prompt", "output"):
        for dataset in traces.datasets(kind):
            found = traces.lengths(dataset, kind)
            assert found.tokens.min() <= found.mean <= found.tokens.max()
    assert traces.lengths("alpaca").counts.sum() == 999
    assert traces.lengths("alpaca-eval/gpt-4o-mini-2024-07-18", "output").counts.sum() == 805
    speeds = {name: (device.prefill_rate, device.decode_rate) for name, device in traces.devices().items()}
    assert speeds["Pixel 7 Pro + BLOOM-1.1B"] == (31.32, 13.93)
    assert len(speeds) == 3


def test_arrivals_keep_the_counts_of_their_pattern() -> None:
    rng = np.random.default_rng(0)
    assert traces.patterns() == ["azure-code", "azure-conv", "mooncake-conv", "servegen-r1"]
    for name in traces.patterns():
        found = traces.pattern(name)
        some = found.sample(3000, rng)
        assert some.shape == (3000,)
        assert np.all(np.diff(some) >= 0)
        assert 0 <= some[0] <= some[-1] < found.span_s
        assert ("parsed" in found.source) == ("azure" not in name)
    every = traces.pattern("azure-code").sample(8819, rng)
    counts = traces.table("arrivals").query("pattern == 'azure-code'").requests
    assert np.array_equal(np.bincount((every // 10).astype(int)), counts)
    with pytest.raises(dc.InputError, match="at most 8819, the requests azure-code recorded, got 8820"):
        traces.pattern("azure-code").sample(8820, rng)


def test_the_prompts_are_distinct_and_as_long_as_those_of_alpaca() -> None:
    prompts = traces.table("prompts")
    assert prompts["id"].tolist() == [f"p{i:03d}" for i in range(1, 121)]
    assert prompts["prompt"].is_unique
    assert prompts["prompt"].str.strip().eq(prompts["prompt"]).all()
    assert not prompts["prompt"].str.contains("<|", regex=False).any()
    assert prompts["tokens"].tolist() == [model.count_tokens(model.build(one)) for one in prompts["prompt"]]
    alpaca = traces.lengths("alpaca")
    every = np.arange(1, alpaca.tokens.max() + 1)
    ours, theirs = np.sort(prompts["tokens"]), np.sort(np.repeat(alpaca.tokens, alpaca.counts))
    shares = [np.searchsorted(found, every, side="right") / found.size for found in (ours, theirs)]
    assert np.abs(shares[0] - shares[1]).max() < 0.03  # the distance of Kolmogorov and Smirnov


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: traces.service("gpt-5"), "no service 'gpt-5'; there are gpt-4o-mini, deepseek-chat"),
        (lambda: traces.service("command-r", "web"), "no source 'web'; there are tables, public"),
        (lambda: traces.lengths("mt-bench", "output"), "no dataset with output lengths 'mt-bench'; there are alpaca"),
        (lambda: traces.pattern("poisson"), "no arrival pattern 'poisson'; there are azure-code, azure-conv"),
        (lambda: traces.pattern("azure-conv", "web"), "no source 'web'"),
        (lambda: traces.lengths("alpaca", "reply"), "no kind of length 'reply'; there are prompt, output"),
        (lambda: traces.lengths("alpaca", "prompt", "web"), "no source 'web'"),
        (lambda: traces.table("nothing"), "no table 'nothing'; there are "),
        (lambda: traces.table("../README"), "no table"),
    ],
)
def test_an_unknown_name_lists_what_exists(call: Callable[[], object], says: str) -> None:
    with pytest.raises(dc.InputError) as caught:
        call()
    assert says in str(caught.value)


def test_only_latencylab_varies_the_prompt_length() -> None:
    table = traces.table("ttft_length_correlation")
    varied = table["distinct_lengths"] > 1
    assert set(table[varied]["trace"]) == {"latencylab"}
    assert table[~varied]["pearson"].isna().all()
    assert (
        (table[varied]["low"] < table[varied]["pearson"]) & (table[varied]["pearson"] < table[varied]["high"])
    ).all()
