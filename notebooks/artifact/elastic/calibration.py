"""Calibration text: answers that the model itself samples to the committed prompts, so that nothing is downloaded.

All answers are sampled side by side, one token of each per step, since one matrix product for all costs little more
than one for a single answer. Every text is at the same position in each step: a prompt's tokens are given, and the
model's own follow.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from artifact.elastic.forward import Array, Block, Model, Packed, neurons, norm, rotated
from artifact.errors import ArtifactError

LEAST_TOKENS = 2000  # of all answers: with fewer, the second moments of an MLP's neurons say nothing
TEMPERATURE = 0.7  # at 1, so small a model strays from what an answer would say
FINISHED = 0.25  # share of finished texts from which on they are dropped; before, dropping costs more than it saves


def sample(
    model: Model,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    stop: int,
    rng: np.random.Generator,
    temperature: float = TEMPERATURE,
) -> list[list[int]]:
    """Each prompt with its answer, at most `tokens` ids in all; an answer ends with the id `stop`.

    ArtifactError if a prompt leaves no room for an answer.
    """
    longest = max(map(len, prompts))
    if tokens <= longest:
        raise ArtifactError(f"calibration texts of {tokens} tokens have no answers: the longest prompt has {longest}")
    texts = [list(prompt) for prompt in prompts]
    going = list(range(len(texts)))  # texts that are computed
    caches = [_Cache(model, block, len(texts), tokens) for block in model.blocks]
    positions = Packed([range(tokens)], model.head_size, model.rope_base)
    for at in range(tokens - 1):
        x = model.embedding[[texts[i][min(at, len(texts[i]) - 1)] for i in going]]
        turn = positions.one(at)
        for block, cache in zip(model.blocks, caches, strict=True):
            x = x + cache.attended(norm(x, block.attn_norm, model.epsilon), turn, at) @ block.attn_output.T
            x = x + neurons(block, norm(x, block.ffn_norm, model.epsilon)) @ block.ffn_down.T
        ends = [
            row
            for row, i in enumerate(going)
            if len(texts[i]) == at + 1 and not _finished(texts[i], prompts[i], stop)
        ]
        if ends:
            logits = norm(x[ends], model.output_norm, model.epsilon) @ model.embedding.T / np.float32(temperature)
            for row, id in zip(ends, _drawn(logits, rng), strict=True):
                texts[going[row]].append(id)
        left = [not _finished(texts[i], prompts[i], stop) for i in going]
        if not any(left):
            break
        if sum(left) < (1 - FINISHED) * len(left):
            going = [i for i, stays in zip(going, left, strict=True) if stays]
            for cache in caches:
                cache.keep(np.array(left))
    return texts


def _drawn(logits: Array, rng: np.random.Generator) -> list[int]:
    """An id out of the softmax of each row."""
    below = np.cumsum(np.exp(logits - logits.max(1, keepdims=True)), axis=1, dtype=np.float64)
    at = rng.random(len(below)) * below[:, -1]
    return [int(np.searchsorted(row, one)) for row, one in zip(below, at, strict=True)]


def _finished(text: Sequence[int], prompt: Sequence[int], stop: int) -> bool:
    return len(text) > len(prompt) and text[-1] == stop


class _Cache:
    """The keys and values of a layer, shapes (texts, groups, d, tokens) and (texts, groups, tokens, d)."""

    def __init__(self, model: Model, block: Block, texts: int, tokens: int) -> None:
        self.block, self.size = block, model.head_size
        groups = len(block.attn_k) // self.size
        self.keys = np.empty((texts, groups, self.size, tokens), np.float32)
        self.values = np.empty((texts, groups, tokens, self.size), np.float32)

    def attended(self, x: Array, turn: Packed, at: int) -> Array:
        """What the heads give for the normed rows of one position, shape (texts, H d)."""
        block = self.block
        q, k = (rotated((x @ w.T).reshape(len(x), -1, self.size), turn) for w in (block.attn_q, block.attn_k))
        self.keys[..., at] = k
        self.values[:, :, at] = (x @ block.attn_v.T).reshape(k.shape)
        q = q.reshape(len(x), k.shape[1], -1, self.size) * np.float32(self.size**-0.5)
        score = q @ self.keys[..., : at + 1]
        score = np.exp(score - score.max(-1, keepdims=True))
        score /= score.sum(-1, keepdims=True)
        heads: Array = (score @ self.values[:, :, : at + 1]).reshape(len(x), -1)
        return heads

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Drop the other texts."""
        self.keys, self.values = self.keys[rows], self.values[rows]
