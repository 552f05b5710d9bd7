"""FLOPs against a transformer whose products are counted, the constrained endpoint against the cost model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import disco_core as dc
from artifact.analysis import energy
from artifact.data import traces


class Counter:
    """Multiplies matrices and counts two FLOPs for each pair of numbers that meet."""

    def __init__(self):
        self.flops = 0

    def times(self, left, right):
        self.flops += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        return left @ right


def next_token(model, heads, caches, decode):
    """FLOPs of one more token of a transformer with empty weights, with a cache of earlier keys and values."""
    count, width = Counter(), model.hidden // heads
    x = np.zeros((1, model.hidden))
    for cache in caches:
        query = count.times(x, np.zeros((model.hidden, model.hidden)))
        cache.append([count.times(x, np.zeros((model.hidden, model.kv_width))) for _ in ("key", "value")])
        keys, values = (np.concatenate(parts) for parts in zip(*cache, strict=True))
        mixed = []
        for head in range(heads):
            group = head * model.kv_width // model.hidden  # heads that share keys and values
            shared = slice(group * width, (group + 1) * width)
            scores = count.times(query[:, head * width : (head + 1) * width], keys[:, shared].T)
            mixed.append(count.times(scores, values[:, shared]))
        x = count.times(np.concatenate(mixed, axis=1), np.zeros((model.hidden, model.hidden)))
        inner = [count.times(x, np.zeros((model.hidden, model.mlp))) for _ in range(model.mlp_matrices - 1)]
        x = count.times(inner[0], np.zeros((model.mlp, model.hidden)))
    if decode:
        count.times(x, np.zeros((model.hidden, model.vocab)))
    return count.flops


@settings(max_examples=40)
@given(
    st.integers(1, 3), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.integers(1, 8),
    st.sampled_from([2, 3]), st.integers(1, 40), st.integers(1, 6), st.integers(0, 6),
)  # fmt: skip
def test_flops_are_those_of_every_product(layers, groups, shared, mlp, matrices, vocab, prompt, answer):
    heads, width = groups * shared, 2
    model = energy.Architecture(layers, heads * width, groups * width, mlp, matrices, vocab)
    caches = [[] for _ in range(layers)]
    for n in range(1, prompt + answer + 1):
        assert model.flops(n, decode=n > prompt) == next_token(model, heads, caches, n > prompt)


def test_the_table_holds_the_shapes_that_were_published():
    table = traces.table("architectures").set_index("model")
    models = energy.architectures()
    assert set(traces.table("devices").model) | set(traces.table("phones").model) == set(models)
    for name, model in models.items():
        # the published counts have biases and norms on top, less than a thousandth
        counted = model.block_weights + model.head_weights
        assert counted < table.parameters[name] < 1.001 * counted


def test_bad_contexts_are_named():
    model = energy.architectures()["BLOOM-560M"]
    for bad in (-1, float("nan"), "long"):
        with pytest.raises(dc.InputError, match="context"):
            model.flops(bad, decode=False)


def test_a_phone_s_row_is_two_kinds_of_token():
    phones = traces.table("phones")
    found = energy.phone_tokens(phones)
    assert len(found) == 2 * len(phones)
    assert found.joule.sum() == pytest.approx((phones.prefill_mj_per_tok + phones.decode_mj_per_tok).sum() / 1e3)
    prefill, decode = found[found.token == "prefill"], found[found.token == "decode"]
    model = energy.architectures()["llama3_2-1b"]
    of_prompt = [float(model.flops(n, decode=False)) for n in range(1, 65)]
    one = prefill[(prefill.model == "llama3_2-1b") & (prefill.prompt_tokens == 64)].iloc[0]
    assert one.gflop == pytest.approx(np.mean(of_prompt) / 1e9)
    answers = [[float(model.flops(64 + n, decode=True)) for n in range(1, N + 1)] for N in energy.ANSWERS]
    two = decode[(decode.model == "llama3_2-1b") & (decode.prompt_tokens == 64)].iloc[0]
    assert two.gflop == pytest.approx(np.mean([np.mean(one) for one in answers]) / 1e9)
    assert one.weights * 64 < two.weights < 1.24


prices = st.floats(1e-9, 1e-3)
joules = st.floats(1e-3, 10)


@given(prices, prices, joules, joules, st.floats(1.001, 1e3))
def test_an_endpoint_is_constrained_beyond_its_rate_and_neither_in_between(
    price_in, price_out, prefill_j, decode_j, beyond
):
    low, high = energy.constrained_rates(price_in, price_out, prefill_j, decode_j)
    assert low <= high * (1 + 1e-12)

    def constraint(rate):
        return dc.CostModel.from_energy(price_in, price_out, prefill_j, decode_j, rate).constraint

    assert constraint(low / beyond) is dc.Constraint.SERVER
    assert constraint(high * beyond) is dc.Constraint.DEVICE
    if high > 1.001 * low:
        with pytest.raises(dc.ConstraintError):
            constraint(np.sqrt(low * high))


def test_bad_prices_and_energies_are_named():
    good = {"price_in": 1e-6, "price_out": 1e-6, "prefill_j": 0.1, "decode_j": 0.3}
    for name, bad in [("price_in", -1), ("price_out", np.nan), ("prefill_j", 0), ("decode_j", -0.1)]:
        with pytest.raises(dc.InputError, match=name):
            energy.constrained_rates(**(good | {name: bad}))
