"""Levels of a model without any calibration: units as they are stored or in a random order, cut in seconds."""

import hashlib
import json
from contextlib import closing
from copy import copy
from dataclasses import replace

import numpy as np

from artifact.data import model as device_model
from artifact.elastic.cut import Order, Shape, parent, write_level, write_ordered
from artifact.elastic.forward import Packed, norm, residuals
from disco_core.systems.elastic.levels import MANIFEST

ANCHORS = (0, 1, 8, 11, 28, 29)  # of the device model
LEVELS = {85: Shape(3, 1152), 63: Shape(2, 768)}  # two of its levels, by their percent


def order_of(path, rng=None, fixed=()):
    """The units of every layer as they are stored; with a generator in a random order, but for `fixed` layers."""
    known = parent(path)

    def units(count):
        shuffled = [layer not in fixed and rng is not None for layer in range(known.layers)]
        return np.stack([rng.permutation(count) if one else np.arange(count) for one in shuffled])

    return Order(units(known.neurons), units(known.groups))


def ordered_arrays(model, order):
    """The model of the forward pass with its units in an order, as the definition of an order has it."""
    result, size = copy(model), model.head_size
    result.blocks = []
    for block, neurons, groups in zip(model.blocks, order.neurons, order.groups, strict=True):
        heads = len(block.attn_q) // len(block.attn_k)
        keys = (groups[:, None] * size + np.arange(size)).ravel()
        queries = (groups[:, None] * size * heads + np.arange(size * heads)).ravel()
        result.blocks.append(
            replace(
                block,
                attn_q=block.attn_q[queries],
                attn_k=block.attn_k[keys],
                attn_v=block.attn_v[keys],
                attn_output=block.attn_output[:, queries],
                ffn_gate=block.ffn_gate[neurons],
                ffn_up=block.ffn_up[neurons],
                ffn_down=block.ffn_down[:, neurons],
            )
        )
    return result


def numpy_logits(model, ids):
    """What the forward pass of `artifact.elastic` says after each token, shape (tokens, vocabulary)."""
    *_, x = residuals(model, Packed([ids], model.head_size, model.rope_base))
    return norm(x, model.output_norm, model.epsilon) @ model.embedding.T


def llama_logits(path, ids, prepare=None):
    """What llama.cpp says, with a float32 cache; `prepare` gets the model first."""
    options = {"n_ctx": 64, "n_threads": 1, "logits_all": True, "type_k": 0, "type_v": 0}
    with closing(device_model.load(path, **options)) as llama:
        if prepare is not None:
            prepare(llama)
        llama.eval(ids)
        return np.array(llama.scores[: len(ids)])


def listed(share, path, adapter=None):
    """A level's entry in a manifest."""
    entry = {"share": share, "file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return entry if adapter is None else entry | {"adapter": listed(share, adapter)}


def write_manifest(folder, sha256, levels):
    manifest = {"parent": {"file": "model.gguf", "sha256": sha256}, "levels": levels}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def write_levels(folder):
    """Levels of the device model, units as they are stored: that of 100 % is the model itself."""
    path = device_model.smollm2_path()
    known, whole = parent(path), folder / "100.gguf"
    write_ordered(path, order_of(path), whole)
    levels = [listed(1.0, whole)]
    for percent, shape in LEVELS.items():
        share, target = known.share(shape, ANCHORS), folder / f"{percent}.gguf"
        write_level(whole, shape, ANCHORS, target)
        levels.append(listed(share, target))
    write_manifest(folder, known.sha256, levels)
    return folder
