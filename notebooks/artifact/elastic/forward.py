"""A model of the llama architecture as float32 arrays, and its forward pass: what calibration reads activations from.

Texts are packed: the rows of all arrays are the tokens of several texts, one after the other, and attention looks at
each text alone. Shapes: N tokens in all, D width, F neurons of an MLP, H heads in K key-value groups of size d.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifact.errors import ArtifactError

Array = NDArray[np.float32]
Ids = NDArray[np.int64]

ARCHITECTURES = ("llama", "deci")  # what levels are made of, and as what they are written
ROWS = 512  # that are computed at once where an intermediate result is wide
BLOCK_TENSORS = (
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
)


@dataclass
class Block:
    """One layer; matrices have shape (out, in).

    attn_q (H d, D), attn_k and attn_v (K d, D), attn_output (D, H d); ffn_gate and ffn_up (F, D), ffn_down (D, F)
    """

    attn_norm: Array
    attn_q: Array
    attn_k: Array
    attn_v: Array
    attn_output: Array
    ffn_norm: Array
    ffn_gate: Array
    ffn_up: Array
    ffn_down: Array

    def first(self, rows: int, neurons: int) -> "Block":
        """The layer with its first key-value rows, their heads, and its first neurons."""
        heads = rows * len(self.attn_q) // len(self.attn_k)
        attention = (self.attn_q[:heads], self.attn_k[:rows], self.attn_v[:rows], self.attn_output[:, :heads])
        mlp = (self.ffn_gate[:neurons], self.ffn_up[:neurons], self.ffn_down[:, :neurons])
        return Block(self.attn_norm, *attention, self.ffn_norm, *mlp)


@dataclass
class Model:
    """The weights of a model, whose output matrix is its embedding, of shape (vocabulary, D); head_size d."""

    embedding: Array
    blocks: list[Block]
    output_norm: Array
    head_size: int
    epsilon: float
    rope_base: float


class Packed:
    """Several texts packed into rows, with the rotations of their positions."""

    def __init__(self, texts: Sequence[Sequence[int]], head_size: int, rope_base: float) -> None:
        self.ids: Ids = np.concatenate([np.asarray(text, np.int64) for text in texts])
        ends = np.cumsum([len(text) for text in texts])
        self.spans = [slice(end - len(text), end) for end, text in zip(ends.tolist(), texts, strict=True)]
        self.positions: Ids = np.concatenate([np.arange(len(text)) for text in texts])
        angle = self.positions[:, None] * rope_base ** (-np.arange(0, head_size, 2) / head_size)
        self.cosine, self.sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def one(self, position: int) -> "Packed":
        """The rotations of one position, for any number of rows."""
        part = copy(self)
        part.cosine, part.sine = self.cosine[position : position + 1], self.sine[position : position + 1]
        return part


def load(path: Path) -> Model:
    """The model in a GGUF file, dequantised; a level too. ArtifactError if levels cannot be made of such a model."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)
    architecture = field(reader, "general.architecture")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if architecture not in ARCHITECTURES or "output.weight" in tensors:
        what = (
            f"is of the {architecture} architecture" if architecture not in ARCHITECTURES else "has an output matrix"
        )
        raise ArtifactError(f"{path.name} {what}; levels are made of {ARCHITECTURES[0]} models with a tied embedding")

    def weights(name: str) -> Array:
        tensor = tensors[f"{name}.weight"]
        array: Array = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        return array

    try:
        blocks = [
            Block(*(weights(f"blk.{i}.{name}") for name in BLOCK_TENSORS))
            for i in range(int(field(reader, f"{architecture}.block_count")))
        ]
        return Model(
            weights("token_embd"),
            blocks,
            weights("output_norm"),
            int(field(reader, f"{architecture}.rope.dimension_count")),
            float(field(reader, f"{architecture}.attention.layer_norm_rms_epsilon")),
            float(field(reader, f"{architecture}.rope.freq_base")),
        )
    except KeyError as error:
        raise ArtifactError(f"{path.name} has no tensor {error}") from None


def field(reader: Any, key: str) -> Any:
    """A field of a GGUF file. ArtifactError if it has none of that name."""
    found = reader.get_field(key)
    if found is None:
        raise ArtifactError(f"the model has no field {key}")
    return found.contents()


def norm(x: Array, weight: Array, epsilon: float) -> Array:
    """RMS norm of each row."""
    scaled: Array = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + np.float32(epsilon)) * weight
    return scaled


def rotated(x: Array, packed: Packed) -> Array:
    """Rotary positions on pairs of neighbours, shape (N, heads, d)."""
    even, odd = x[..., ::2], x[..., 1::2]
    cosine, sine = packed.cosine[:, None], packed.sine[:, None]
    out = np.empty_like(x)
    out[..., ::2], out[..., 1::2] = even * cosine - odd * sine, even * sine + odd * cosine
    return out


def attended(model: Model, block: Block, x: Array, packed: Packed) -> Array:
    """What the heads of a layer give for normed rows, before the output projection, shape (N, H d)."""
    size = model.head_size
    heads = block.attn_q.shape[0] // size
    q = rotated((x @ block.attn_q.T).reshape(len(x), heads, size), packed)
    k = rotated((x @ block.attn_k.T).reshape(len(x), -1, size), packed)
    v = (x @ block.attn_v.T).reshape(len(x), -1, size)
    per_group = heads // k.shape[1]
    out = np.empty((len(x), heads, size), np.float32)
    for span in packed.spans:
        length = span.stop - span.start
        hidden = np.triu(np.full((length, length), -np.inf, np.float32), 1)
        for head in range(heads):
            score = q[span, head] @ k[span, head // per_group].T * np.float32(size**-0.5) + hidden
            score = np.exp(score - score.max(1, keepdims=True))
            out[span, head] = score @ v[span, head // per_group] / score.sum(1, keepdims=True)
    return out.reshape(len(x), -1)


def neurons(block: Block, x: Array) -> Array:
    """The activations of an MLP's neurons for normed rows, silu(gate) * up, shape (N, F)."""
    out = np.empty((len(x), len(block.ffn_gate)), np.float32)
    for start in range(0, len(x), ROWS):  # parts that stay in the processor's cache
        some = x[start : start + ROWS]
        gate = some @ block.ffn_gate.T
        sigmoid = np.exp(np.minimum(-gate, 80))  # beyond, the quotient is zero anyway
        sigmoid += 1
        np.divide(gate, sigmoid, out=gate)
        np.multiply(gate, some @ block.ffn_up.T, out=out[start : start + ROWS])
    return out


def after_block(model: Model, block: Block, x: Array, packed: Packed) -> Array:
    """The residual stream after a layer, shape (N, D)."""
    if len(block.attn_q):
        x = x + attended(model, block, norm(x, block.attn_norm, model.epsilon), packed) @ block.attn_output.T
    if len(block.ffn_gate):
        x = x + neurons(block, norm(x, block.ffn_norm, model.epsilon)) @ block.ffn_down.T
    return x


def residuals(model: Model, packed: Packed) -> Iterator[Array]:
    """The residual stream before each layer, and after the last."""
    x = model.embedding[packed.ids]
    yield x
    for block in model.blocks:
        x = after_block(model, block, x, packed)
        yield x


def losses(model: Model, x: Array, packed: Packed) -> NDArray[np.float64]:
    """Nats of each text's second to last token, from the last residual stream, packed without the first of each."""
    rows = np.concatenate([np.arange(span.start, span.stop - 1) for span in packed.spans])
    out = np.empty(len(rows))
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        logits = norm(x[some], model.output_norm, model.epsilon) @ model.embedding.T
        top = logits.max(1)
        total = np.log(np.exp(logits - top[:, None]).sum(1)) + top
        out[start : start + len(some)] = total - logits[np.arange(len(some)), packed.ids[some + 1]]
    return out
