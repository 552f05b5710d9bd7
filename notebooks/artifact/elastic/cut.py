"""Levels of a model as GGUF files: its units ordered once, and of each layer but the anchors a first part kept.

Units are the neurons of an MLP (rows of gate and up with a column of down) and the key-value groups of attention
heads (rows of q, k and v with columns of the output matrix). Their order leaves the output unchanged, so a level is a
prefix of the ordered model: rows, and whole quantisation blocks of columns, are copied as they are. Only the columns
of the down-projection are quantised anew, once, when they are ordered, since their blocks run along the neurons.

Levels are written under llama.cpp's `deci` architecture, which has widths and heads per layer.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from artifact.elastic.forward import BLOCK_TENSORS, Array, Ids, field
from artifact.errors import ArtifactError

LEVEL = "deci"
BLOCK = 32  # weights in a block of all quantisations that are supported
REQUANTISED = "Q8_0"  # of ordered columns: in four bits, quantised a second time, logits move by up to 7
SUPPORTED = ("Q4_0", "Q4_1", "Q8_0", "F16", "F32")
GLOBAL = ("token_embd.weight", "output_norm.weight", "output.weight")
ROWS, COLUMNS = ("ffn_gate", "ffn_up"), "ffn_down"
HEAD_ROWS, HEAD_COLUMNS = ("attn_q", "attn_k", "attn_v"), "attn_output"


class Shape(NamedTuple):
    """What a level keeps of every layer that is no anchor: key-value groups of heads, and neurons."""

    groups: int
    neurons: int


@dataclass(frozen=True)
class Order:
    """The units of each layer from the most important on, as indices: `neurons` (layers, F), `groups` (layers, K)."""

    neurons: Ids
    groups: Ids


@dataclass(frozen=True)
class Parent:
    """The sizes of a model that levels are made of, and the checksum of its file.

    layers, width D, neurons F, heads H, groups K, head_size d; block: neurons per block of the down-projection's
    quantisation, of which levels keep a whole number
    """

    layers: int
    width: int
    neurons: int
    heads: int
    groups: int
    head_size: int
    block: int
    sha256: str

    def share(self, shape: Shape, anchors: Iterable[int]) -> float:
        """The part of all blocks' weights that a level has."""
        attention = 2 * self.width * self.head_size * (self.heads / self.groups + 1)  # of one group
        mlp = 3 * self.width
        part = (shape.groups * attention + shape.neurons * mlp) / (self.groups * attention + self.neurons * mlp)
        anchored = len(set(anchors)) / self.layers
        return anchored + (1 - anchored) * part

    def shapes(self, share: float, anchors: Iterable[int]) -> list[Shape]:
        """For each number of groups the shape nearest to a share, at least one group and one block of neurons."""
        anchors = set(anchors)
        found = []
        for groups in range(1, self.groups + 1):
            candidates = [Shape(groups, n) for n in range(self.block, self.neurons + 1, self.block)]
            found.append(min(candidates, key=lambda shape: abs(self.share(shape, anchors) - share)))
        return found


def parent(path: Path) -> Parent:
    """What there is to know of a model before it is cut. ArtifactError if it is not of a kind that can be cut."""
    reader = _reader(path)
    name = field(reader, "general.architecture")
    if name != "llama":
        raise ArtifactError(f"{path.name} is of the {name} architecture; levels are made of llama models")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    kinds = sorted({tensor.tensor_type.name for tensor in reader.tensors} - {*SUPPORTED})
    if kinds:
        raise ArtifactError(f"{path.name} is quantised as {', '.join(kinds)}; supported: {', '.join(SUPPORTED)}")
    if other := sorted(name for name in tensors if name not in GLOBAL and not name.startswith("blk.")):
        raise ArtifactError(f"{path.name} has a tensor {other[0]}, which the forward pass here does not know")
    if "output.weight" in tensors:
        raise ArtifactError(f"{path.name} has an output matrix of its own; levels are made of models that share it")
    layers, heads = int(field(reader, "llama.block_count")), int(field(reader, "llama.attention.head_count"))
    wanted = {f"blk.{layer}.{tensor}.weight" for layer in range(layers) for tensor in BLOCK_TENSORS}
    if other := sorted(wanted ^ {name for name in tensors if name.startswith("blk.")}):
        what = "has no" if other[0] in wanted else "has a"
        raise ArtifactError(f"{path.name} {what} {other[0]}; levels are made of models with {len(wanted)} matrices")
    neurons, width = (int(n) for n in tensors["blk.0.ffn_down.weight"].shape)
    size = int(tensors["blk.0.attn_q.weight"].shape[1]) // heads
    groups = int(field(reader, "llama.attention.head_count_kv"))
    if neurons % BLOCK or heads // groups * size % BLOCK:
        raise ArtifactError(f"{path.name} has neurons or groups of heads that are no whole blocks of {BLOCK}")
    return Parent(layers, width, neurons, heads, groups, size, BLOCK, _sha256(path))


def write_ordered(path: Path, order: Order, target: Path) -> None:
    """The whole model with its units in an order: the level of 100 %, of which every other level is a prefix."""
    known = parent(path)

    def ordered(name: str, layer: int, tensor: Any) -> tuple[NDArray[Any], Any]:
        data, kind = tensor.data, tensor.tensor_type
        neurons, groups = order.neurons[layer], order.groups[layer]
        if name in ROWS:
            data = data[neurons]
        elif name == COLUMNS and not np.array_equal(neurons, np.arange(known.neurons)):
            data, kind = _columns(data, kind, neurons)
        elif name in HEAD_ROWS:
            data = data.reshape(known.groups, -1, data.shape[1])[groups].reshape(data.shape)
        elif name == HEAD_COLUMNS:
            data = data.reshape(len(data), known.groups, -1)[:, groups].reshape(data.shape)
        return data, kind

    fields: dict[str, str | float] = {"elastic.parent_sha256": known.sha256, "elastic.share": 1.0}
    _write(path, target, ordered, [Shape(known.groups, known.neurons)] * known.layers, known, fields)


def _columns(data: NDArray[Any], kind: Any, order: Ids) -> tuple[NDArray[Any], Any]:
    """Columns in an order, quantised anew if they are in blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize, quantize

    if GGML_QUANT_SIZES[kind][0] == 1:
        return np.ascontiguousarray(data[:, order]), kind
    new = GGMLQuantizationType[REQUANTISED]
    return quantize(np.ascontiguousarray(dequantize(data, kind)[:, order]), new), new


def write_level(
    ordered: Path, shape: Shape, anchors: Sequence[int], target: Path, down: Sequence[Array | None] | None = None
) -> None:
    """A level out of the ordered model: the first units of every layer that is no anchor.

    down   of each layer a down-projection that takes the place of the kept one, shape (D, neurons); None: as it is
    ArtifactError if the level leaves a layer with nothing, or is no whole number of blocks.
    """
    from gguf import quantize

    known = _of_ordered(ordered)
    if not (0 < shape.groups <= known.groups and 0 < shape.neurons <= known.neurons):
        raise ArtifactError(
            f"a level keeps 1 to {known.groups} groups of heads and 1 to {known.neurons} neurons of each layer, "
            f"got {shape.groups} and {shape.neurons}"
        )
    if shape.neurons % known.block:
        raise ArtifactError(f"a level keeps whole blocks of {known.block} neurons, got {shape.neurons}")
    if wrong := [anchor for anchor in anchors if not 0 <= anchor < known.layers]:
        raise ArtifactError(f"anchors are layers from 0 to {known.layers - 1}, got {wrong[0]}")
    full = Shape(known.groups, known.neurons)
    shapes = [full if layer in anchors else shape for layer in range(known.layers)]

    def first(name: str, layer: int, tensor: Any) -> tuple[NDArray[Any], Any]:
        data, kind, kept = tensor.data, tensor.tensor_type, shapes[layer]
        replaced = down[layer] if down is not None else None
        if name == COLUMNS and replaced is not None:
            data = quantize(np.ascontiguousarray(replaced), kind)
        elif name in ROWS:
            data = data[: kept.neurons]
        elif name == COLUMNS:
            data = np.ascontiguousarray(data[:, : data.shape[1] * kept.neurons // known.neurons])
        elif name in HEAD_ROWS:
            data = data[: len(data) * kept.groups // known.groups]
        elif name == HEAD_COLUMNS:
            data = np.ascontiguousarray(data[:, : data.shape[1] * kept.groups // known.groups])
        return data, kind

    share = known.share(shape, anchors)
    _write(ordered, target, first, shapes, known, {"elastic.parent_sha256": known.sha256, "elastic.share": share})


def write_adapter(ordered: Path, share: float, factors: Sequence[tuple[Array, Array] | None], target: Path) -> None:
    """A low-rank adapter of the down-projections of a level, as llama.cpp loads it.

    factors   of each layer (a, b) of shapes (rank, neurons) and (D, rank), which add `b a`; None: nothing
    """
    from gguf import GGUFWriter

    known = _of_ordered(ordered)
    writer = GGUFWriter(None, LEVEL)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    rank = next((len(pair[0]) for pair in factors if pair is not None), 1)
    writer.add_float32("adapter.lora.alpha", float(rank))  # its scale is alpha / rank
    writer.add_string("elastic.parent_sha256", known.sha256)
    writer.add_float32("elastic.share", share)
    for layer, pair in enumerate(factors):
        for name, factor in zip("ab", pair or (), strict=False):
            writer.add_tensor(f"blk.{layer}.ffn_down.weight.lora_{name}", np.ascontiguousarray(factor, np.float32))
    _save(writer, target)


def _write(
    source: Path,
    target: Path,
    data: Callable[[str, int, Any], tuple[NDArray[Any], Any]],
    shapes: Sequence[Shape],
    known: Parent,
    fields: dict[str, str | float],
) -> None:
    from gguf import GGUFWriter

    reader = _reader(source)
    old = field(reader, "general.architecture")
    writer = GGUFWriter(None, LEVEL)
    per_layer = {
        f"{LEVEL}.feed_forward_length": [shape.neurons for shape in shapes],
        f"{LEVEL}.attention.head_count_kv": [shape.groups for shape in shapes],
        f"{LEVEL}.attention.head_count": [shape.groups * known.heads // known.groups for shape in shapes],
    }
    for key, one in reader.fields.items():
        name = key.replace(f"{old}.", f"{LEVEL}.", 1) if key.startswith(f"{old}.") else key
        if not name.startswith(("GGUF.", "general.architecture", "elastic.")) and name not in per_layer:
            writer.add_key_value(name, one.contents(), one.types[0], one.types[-1] if len(one.types) > 1 else None)
    for name, values in per_layer.items():
        writer.add_array(name, values)
    for name in ("key_length", "value_length"):
        if f"{old}.attention.{name}" not in reader.fields:
            writer.add_uint32(f"{LEVEL}.attention.{name}", known.head_size)
    for name, text in fields.items():
        writer.add_string(name, text) if isinstance(text, str) else writer.add_float32(name, text)
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        array, kind = tensor.data, tensor.tensor_type
        if parts[0] == "blk":
            array, kind = data(parts[2], int(parts[1]), tensor)
        writer.add_tensor(tensor.name, array, raw_dtype=kind)
    _save(writer, target)


def _save(writer: Any, target: Path) -> None:
    """Write a file under its name only once it is complete. ArtifactError if the disk does not take it."""
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        writer.write_header_to_file(part)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(part, target)
    except OSError as error:
        why = error.strerror or f"the disk takes no more ({error})"  # NumPy's errors have no code
        raise ArtifactError(f"cannot write {target}: {why}") from None
    finally:
        with suppress(OSError):
            writer.close()
        with suppress(OSError):
            part.unlink()


def _of_ordered(path: Path) -> Parent:
    """The sizes of the ordered model, from its own file. ArtifactError if it is a level, or something else."""
    reader = _reader(path)
    share = reader.get_field("elastic.share")
    if share is None or share.contents() != 1:
        raise ArtifactError(f"{path.name} is no ordered model, of which levels are cut")
    down = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_down.weight")
    neurons, width = (int(n) for n in down.shape)
    heads, groups = (int(field(reader, f"{LEVEL}.attention.{name}")[0]) for name in ("head_count", "head_count_kv"))
    layers, size = (int(field(reader, f"{LEVEL}.{name}")) for name in ("block_count", "attention.key_length"))
    return Parent(layers, width, neurons, heads, groups, size, BLOCK, str(field(reader, "elastic.parent_sha256")))


def _reader(path: Path) -> Any:
    """A file's fields and tensors, memory mapped. ArtifactError if it cannot be read."""
    try:
        return _opened(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, IndexError) as error:  # the last where the file was cut short
        raise ArtifactError(f"{path} is no GGUF file that can be read: {error}") from None


def close_files() -> None:
    """Unmap the models that were read, whose memory this process shares with all others that have mapped them."""
    _opened.cache_clear()


@lru_cache(maxsize=2)
def _opened(path: Path, changed_ns: int) -> Any:  # reading a vocabulary takes seconds
    from gguf import GGUFReader

    return GGUFReader(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
