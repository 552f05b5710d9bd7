"""Calibration text: answers that the model itself samples to the committed prompts, so that nothing is downloaded.

All answers are sampled side by side, one token of each per step, since one matrix product for all costs little more
than one for a single answer.
"""

from collections.abc import Sequence

import numpy as np

from artifact.elastic.forward import Model, Packed, neurons, norm, rotated
from artifact.errors import ArtifactError

LEAST_TOKENS = 2000  # of all answers: with fewer, the second moments of an MLP's neurons say nothing


def sample(
    model: Model,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    stop: int,
    rng: np.random.Generator,
    temperature: float = 1.0,
) -> list[list[int]]:
    """Each prompt with its answer, at most `tokens` ids in all; an answer ends with the id `stop`.

    ArtifactError if that is too little text to calibrate on.
    """
    count, longest = len(prompts), max(map(len, prompts))
    if tokens <= longest:
        raise ArtifactError(f"calibration texts of {tokens} tokens have no answers: the longest prompt has {longest}")
    size = model.head_size
    groups = len(model.blocks[0].attn_k) // size
    shape = (len(model.blocks), count, groups, tokens, size)
    keys, values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    steps = Packed([range(tokens)], size, model.rope_base)  # the rotations of every position
    texts, done = [list(prompt) for prompt in prompts], np.zeros(count, np.bool_)
    for at in range(tokens - 1):
        running = np.flatnonzero(~done)
        if not len(running):
            break
        x = model.embedding[[texts[i][at] for i in running]]
        for b, block in enumerate(model.blocks):
            y = norm(x, block.attn_norm, model.epsilon)
            here = slice(at, at + 1)
            turn = _Turned(steps, here)
            q, k = (rotated((y @ w.T).reshape(len(y), -1, size), turn) for w in (block.attn_q, block.attn_k))
            keys[b, running, :, at] = k
            values[b, running, :, at] = (y @ block.attn_v.T).reshape(len(y), -1, size)
            q = q.reshape(len(y), groups, -1, size)
            score = np.einsum("ngqd,ngtd->ngqt", q, keys[b, running, :, : at + 1], optimize=True) * np.float32(
                size**-0.5
            )
            score = np.exp(score - score.max(-1, keepdims=True))
            score /= score.sum(-1, keepdims=True)
            seen = np.einsum("ngqt,ngtd->ngqd", score, values[b, running, :, : at + 1], optimize=True)
            x = x + seen.reshape(len(y), -1) @ block.attn_output.T
            x = x + neurons(block, norm(x, block.ffn_norm, model.epsilon)) @ block.ffn_down.T
        ends = [row for row, i in enumerate(running) if len(texts[i]) == at + 1]  # those whose next token is sampled
        if not ends:
            continue
        logits = norm(x[ends], model.output_norm, model.epsilon) @ model.embedding.T / np.float32(temperature)
        drawn = np.argmax(logits + rng.gumbel(size=logits.shape).astype(np.float32), axis=1)
        for row, id in zip(ends, drawn.tolist(), strict=True):
            texts[running[row]].append(id)
            done[running[row]] = id == stop
    return texts


class _Turned:
    """The rotations of one position, for every row."""

    def __init__(self, steps: Packed, here: slice) -> None:
        self.cosine, self.sine = steps.cosine[here], steps.sine[here]
