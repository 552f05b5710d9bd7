"""Levels cut out of a model: the ordered model says what the model says, and a level is a prefix of it.

A tiny random model in float32 shows it to rounding, and llama.cpp runs what was written; the device model confirms
both.
"""

import ctypes
import errno
import os
import resource
from contextlib import contextmanager

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact.data import model as device_model
from artifact.elastic import cut as cut_module
from artifact.elastic.cut import Shape, parent, write_adapter, write_level, write_ordered
from artifact.elastic.forward import BLOCK_TENSORS, load
from artifact.elastic.importance import cut
from artifact.errors import ArtifactError
from tests.helpers import tiny
from tests.helpers.levels import ANCHORS, LEVELS, llama_logits, numpy_logits, order_of, ordered_arrays

IDS = [int(id) for id in np.random.default_rng(1).integers(0, tiny.WORDS, 24)]
MOST = 1e-5  # of float32's rounding, in logits of about 1 to 5
EXACT = ("F32", "F16")
KINDS = (*EXACT, "Q8_0", "Q4_1", "Q4_0")
# by which llama.cpp's logits differ, since it rounds activations as it does weights: to F16, or to eight bits
NOISE = {"F32": MOST, "F16": 0.01, "Q8_0": 0.2, "Q4_1": 0.2, "Q4_0": 0.2}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """By quantisation, a tiny model, its random order, and its ordered copy."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        path = tiny.tiny_model(folder / "model.gguf", kind)
        order = order_of(path, np.random.default_rng(2))
        write_ordered(path, order, folder / "100.gguf")
        found[kind] = path, order, folder / "100.gguf"
    return found


def furthest(some, other):
    return float(np.abs(some - other).max())


def matrices(model):
    return [getattr(block, name) for block in model.blocks for name in BLOCK_TENSORS]


def block_weights(path):
    """Weights of the layers' matrices, counted in the file."""
    tensors = GGUFReader(path).tensors
    return sum(int(one.n_elements) for one in tensors if one.name.startswith("blk.") and len(one.shape) == 2)


# --- the order


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_units_leaves_the_output_unchanged(made, kind):
    path, order, _ = made[kind]
    model = load(path)
    shuffled = ordered_arrays(model, order)
    assert not np.array_equal(shuffled.blocks[0].ffn_up, model.blocks[0].ffn_up)
    assert furthest(numpy_logits(shuffled, IDS), numpy_logits(model, IDS)) < MOST


@pytest.mark.parametrize("kind", KINDS)
def test_the_ordered_file_holds_the_ordered_arrays(made, kind):
    """All exactly, but for columns whose blocks were torn apart: these within half a step of eight bits."""
    path, order, ordered = made[kind]
    for wanted, found in zip(load(ordered).blocks, ordered_arrays(load(path), order).blocks, strict=True):
        for name in BLOCK_TENSORS:
            some, other = getattr(wanted, name), getattr(found, name)
            if name != "ffn_down" or kind in EXACT:
                assert np.array_equal(some, other)
            else:
                blocks = other.reshape(len(other), -1, 32)
                step = np.abs(blocks).max(-1, keepdims=True) / 127
                assert np.all(np.abs(some.reshape(blocks.shape) - blocks) <= 0.6 * step)
    assert furthest(numpy_logits(load(ordered), IDS), numpy_logits(load(path), IDS)) < (
        MOST if kind in EXACT else 0.05
    )


@pytest.mark.parametrize("kind", KINDS)
def test_units_as_they_are_stored_stay_as_they_are(made, kind, tmp_path):
    path = made[kind][0]
    write_ordered(path, order_of(path), tmp_path / "100.gguf")
    before, after = ({one.name: one for one in GGUFReader(p).tensors} for p in (path, tmp_path / "100.gguf"))
    assert before.keys() == after.keys()
    for name, one in before.items():
        assert one.tensor_type == after[name].tensor_type
        assert np.array_equal(one.data, after[name].data)
    assert np.array_equal(llama_logits(path, IDS), llama_logits(tmp_path / "100.gguf", IDS))


# --- the levels

anchors_of = st.sets(st.integers(0, tiny.LAYERS - 1), max_size=tiny.LAYERS).map(sorted)
shape_of = st.builds(Shape, st.integers(1, tiny.GROUPS), st.integers(1, tiny.NEURONS // 32).map(lambda n: 32 * n))


@settings(max_examples=40)
@given(kind=st.sampled_from(KINDS), shape=shape_of, anchors=anchors_of)
def test_a_level_is_a_prefix_of_the_ordered_model_and_llama_cpp_runs_it(made, tmp_path_factory, kind, shape, anchors):
    path, _, ordered = made[kind]
    target = tmp_path_factory.mktemp("level") / "level.gguf"
    write_level(ordered, shape, anchors, target)
    level = load(target)
    wanted = cut(load(ordered), shape.groups, shape.neurons, anchors)
    assert all(np.array_equal(some, one) for some, one in zip(matrices(level), matrices(wanted), strict=True))
    assert furthest(llama_logits(target, IDS), numpy_logits(level, IDS)) < NOISE[kind]

    share = parent(path).share(shape, anchors)
    assert block_weights(target) / block_weights(path) == pytest.approx(share, abs=1e-12)
    reader = GGUFReader(target)
    assert reader.get_field("elastic.share").contents() == pytest.approx(share)
    assert reader.get_field("elastic.parent_sha256").contents() == parent(path).sha256


def test_a_head_may_have_another_size_than_the_width_gives_it(tmp_path):
    path = tiny.tiny_model(tmp_path / "model.gguf", head_size=32)
    write_ordered(path, order_of(path, np.random.default_rng(5)), tmp_path / "100.gguf")
    write_level(tmp_path / "100.gguf", Shape(2, 64), [1], tmp_path / "level.gguf")
    assert furthest(llama_logits(tmp_path / "100.gguf", IDS), numpy_logits(load(path), IDS)) < MOST
    level = tmp_path / "level.gguf"
    assert furthest(llama_logits(level, IDS), numpy_logits(load(level), IDS)) < MOST
    assert block_weights(level) / block_weights(path) == pytest.approx(parent(path).share(Shape(2, 64), [1]))


@given(share=st.floats(0.0, 1.0), anchors=anchors_of)
def test_for_each_number_of_groups_the_nearest_shape_is_found(made, share, anchors):
    known = parent(made["F32"][0])
    found = known.shapes(share, anchors)
    assert [shape.groups for shape in found] == [1, 2, 3]
    for shape in found:
        others = [Shape(shape.groups, neurons) for neurons in range(32, tiny.NEURONS + 1, 32)]
        nearest = min(abs(known.share(other, anchors) - share) for other in others)
        assert abs(known.share(shape, anchors) - share) == nearest
    assert known.share(Shape(3, tiny.NEURONS), anchors) == 1


# --- what makes up for the units that were cut


def test_a_down_projection_can_be_replaced(made, tmp_path):
    ordered = made["F32"][2]
    rng = np.random.default_rng(3)
    down = [None, *(rng.normal(size=(tiny.WIDTH, 64)).astype(np.float32) for _ in range(tiny.LAYERS - 1))]
    write_level(ordered, Shape(2, 64), [0], tmp_path / "level.gguf", down)
    blocks = load(tmp_path / "level.gguf").blocks
    assert np.array_equal(blocks[0].ffn_down, load(ordered).blocks[0].ffn_down)
    assert all(np.array_equal(block.ffn_down, one) for block, one in zip(blocks[1:], down[1:], strict=True))


@pytest.mark.parametrize("rank", [1, 8])
def test_an_adapter_adds_the_product_of_its_factors(made, tmp_path, rank):
    ordered, rng = made["F32"][2], np.random.default_rng(4)
    shape = (tiny.WIDTH, rank), (rank, 64)
    b, a = (rng.normal(size=(tiny.LAYERS, *one)).astype(np.float32) / 10 for one in shape)
    path, adapter = tmp_path / "level.gguf", tmp_path / "adapter.gguf"
    write_level(ordered, Shape(2, 64), [0], path)
    write_adapter(ordered, 0.5, [None, *zip(a[1:], b[1:], strict=True)], adapter)
    level = load(path)
    without = numpy_logits(level, IDS)
    for layer in range(1, tiny.LAYERS):
        level.blocks[layer].ffn_down = level.blocks[layer].ffn_down + b[layer] @ a[layer]
    wanted = numpy_logits(level, IDS)
    assert furthest(llama_logits(path, IDS, lambda llama: applied(llama, adapter)), wanted) < 5 * MOST
    assert furthest(wanted, without) > 0.1


def applied(llama, path):
    import llama_cpp

    loaded = llama_cpp.llama_adapter_lora_init(llama.model, bytes(path))
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded)
    assert llama_cpp.llama_set_adapters_lora(llama.ctx, adapters, 1, (ctypes.c_float * 1)(1.0)) == 0


# --- bad input


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"architecture": "qwen2"}, "is of the qwen2 architecture"),
        ({"kind": "Q5_1"}, "is quantised as Q5_1; supported: Q4_0"),
        ({"own_output": True}, "has an output matrix of its own"),
        ({"head_size": 8}, "has neurons or groups of heads that are"),  # two heads of a group are 16 columns
        ({"neurons": 144}, "has neurons or groups of heads that are no whole blocks of 32"),
        ({"more": "blk.1.attn_q.bias"}, "has a blk.1.attn_q.bias"),
        ({"without": "blk.2.ffn_gate.weight"}, "has no blk.2.ffn_gate.weight"),
    ],
)
def test_a_model_that_cannot_be_cut_is_one_line(tmp_path, options, word):
    path = tiny.tiny_model(tmp_path / "model.gguf", **options)
    with pytest.raises(ArtifactError, match=f"^model.gguf {word}") as caught:
        parent(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", [None, b"", b"hello there", b"GGUF\x03\0\0\0", b"GGUF" + b"\xff" * 64])
def test_a_file_that_is_no_model_is_one_line(tmp_path, raw):
    path = tmp_path / "model.gguf"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(ArtifactError, match=r"model.gguf is no GGUF file that can be read") as caught:
        parent(path)
    assert "\n" not in str(caught.value)


def test_a_model_that_was_cut_short_is_one_line(made, tmp_path):
    raw = made["Q4_1"][0].read_bytes()
    for size in (20, 100, 300, 700, 2000, 4000, len(raw) // 2, len(raw) - 4000):
        path = tmp_path / f"{size}.gguf"
        path.write_bytes(raw[:size])
        with pytest.raises(ArtifactError, match=r"gguf is no GGUF file that can be read"):
            parent(path)


@pytest.mark.parametrize(
    ("shape", "anchors", "word"),
    [
        (Shape(0, 64), [], "1 to 3 groups of heads and 1 to 160 neurons of each layer, got 0 and 64"),
        (Shape(2, 0), [0, 1, 2], "got 2 and 0"),
        (Shape(4, 64), [], "got 4 and 64"),
        (Shape(2, 192), [], "got 2 and 192"),
        (Shape(2, 65), [], "whole blocks of 32 neurons, got 65"),
        (Shape(2, 64), [0, 3], "layers from 0 to 2, got 3"),
        (Shape(2, 64), [-1], "layers from 0 to 2, got -1"),
    ],
)
def test_a_level_that_cannot_be_is_one_line(made, tmp_path, shape, anchors, word):
    with pytest.raises(ArtifactError, match=word):
        write_level(made["Q4_1"][2], shape, anchors, tmp_path / "level.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_level_is_cut_from_the_ordered_model_alone(made, tmp_path):
    path, _, ordered = made["Q4_1"]
    write_level(ordered, Shape(2, 64), [0], tmp_path / "50.gguf")
    for source in (path, tmp_path / "50.gguf"):
        with pytest.raises(ArtifactError, match=f"^{source.name} is no ordered model"):
            write_level(source, Shape(1, 32), [0], tmp_path / "level.gguf")
        with pytest.raises(ArtifactError, match=f"^{source.name} is no ordered model"):
            write_adapter(source, 0.5, [None] * tiny.LAYERS, tmp_path / "level.gguf")
    with pytest.raises(ArtifactError, match=r"^100.gguf is of the deci architecture"):
        parent(ordered)
    assert [one.name for one in tmp_path.iterdir()] == ["50.gguf"]


@contextmanager
def small_files(most):
    """No file of this process grows beyond so many bytes, as on a disk that is full: not even pytest's output."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("most", [0, 100, 5000, 50_000])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(made, tmp_path, most):
    path, order, ordered = made["Q4_1"]
    target = tmp_path / "level.gguf"
    target.write_bytes(b"what was there")
    for write in (
        lambda: write_ordered(path, order, target),
        lambda: write_level(ordered, Shape(3, 128), [0], target),
    ):
        with pytest.raises(ArtifactError, match=r"^cannot write .*level\.gguf: \w") as caught, small_files(most):
            write()
        assert "\n" not in str(caught.value)
    assert [one.name for one in tmp_path.iterdir()] == ["level.gguf"]
    assert target.read_bytes() == b"what was there"


def test_a_folder_that_takes_no_file_is_one_line(made, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ArtifactError, match=r"^cannot write .*: (File exists|Not a directory)$"):
        write_level(made["F32"][2], Shape(3, 64), [], tmp_path / "file" / "level.gguf")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cut_module.os, "replace", full)
    with pytest.raises(ArtifactError, match=r"^cannot write .*level.gguf: No space left on device$"):
        write_level(made["F32"][2], Shape(3, 64), [], tmp_path / "level.gguf")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


# --- the device model

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def device(levels_folder):
    """A question's ids, the model's arrays, its file, and the folder of its levels, units as they are stored."""
    text = device_model.build("Why is the sea salty? Answer in three sentences, and name two rivers.")
    ids = device_model.tokenizer().tokenize(text.encode(), add_bos=False, special=True)
    path = device_model.smollm2_path()
    return ids, load(path), path, levels_folder


@slow
def test_the_device_model_as_it_is_stored_says_the_same(device):
    ids, _, path, folder = device
    assert np.array_equal(llama_logits(folder / "100.gguf", ids), llama_logits(path, ids))


@slow
def test_the_device_model_in_a_random_order_says_nearly_the_same(device, tmp_path):
    """Its arrays to rounding; its file, where the anchors stay as they are, within half a logit."""
    ids, model, path, _ = device
    order = order_of(path, np.random.default_rng(1), ANCHORS)
    whole = numpy_logits(model, ids)
    assert furthest(numpy_logits(ordered_arrays(model, order), ids), whole) < 1e-3
    write_ordered(path, order, tmp_path / "100.gguf")
    found = numpy_logits(load(tmp_path / "100.gguf"), ids)
    assert furthest(found, whole) < 0.5
    assert np.sqrt(np.mean((found - whole) ** 2)) < 0.1


@slow
@pytest.mark.parametrize(("percent", "shape"), LEVELS.items())
def test_a_level_of_the_device_model_is_what_was_cut(device, percent, shape):
    ids, model, _, folder = device
    level = folder / f"{percent}.gguf"
    wanted = numpy_logits(cut(model, shape.groups, shape.neurons, ANCHORS), ids)
    assert np.array_equal(numpy_logits(load(level), ids), wanted)
    found = llama_logits(level, ids)
    # llama.cpp rounds activations to eight bits in each of thirty layers; of the whole model it is 3 %
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.15 * wanted.std()
    assert np.mean(found.argmax(1) == wanted.argmax(1)) > 0.6
