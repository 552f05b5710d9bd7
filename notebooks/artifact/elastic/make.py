"""Make the levels of a model in a folder: calibrate, find the anchors, order the units, cut, and recover.

Everything is in one call, since each step needs the arrays of the one before; what came of it are two small tables.
"""

import hashlib
import json
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from artifact.data import model as device_model
from artifact.elastic import calibration, forward, importance, recovery
from artifact.elastic.cut import Order, Parent, Shape, close_files, parent, write_adapter, write_level, write_ordered
from artifact.errors import ArtifactError
from artifact.files import ROOT, write_together
from disco_core.systems.elastic.levels import MANIFEST

PROMPTS = ROOT / "data" / "prompts.csv"
TRIED = 8  # calibration texts by which layers and shapes are compared, which takes a pass for each
ORDERED = 100


@dataclass
class Made:
    """The levels in a folder, and how they came about.

    layers   layer, removal (nats per token that the loss grows by without it), anchor
    levels   percent, share, groups, neurons, bytes, adapter_bytes, explained, held_out (R^2 of the recovery)
    seconds  by step
    """

    folder: Path
    layers: pd.DataFrame
    levels: pd.DataFrame
    seconds: dict[str, float] = field(default_factory=dict)


class Workshop:
    """A model, its calibration text and its ordered copy, from which levels are cut into `folder`."""

    def __init__(self, folder: Path, *, answer_tokens: int, seed: int) -> None:
        self.folder, self.path = folder, device_model.smollm2_path()
        self.parent: Parent = parent(self.path)
        self.seconds = dict[str, float]()
        self._clock = time.perf_counter()
        self.model = forward.load(self.path)
        self.texts = calibration_texts(self.model, answer_tokens, seed)
        self.packed = self._packed(self.texts)
        self.few = self._packed(self.texts[::-1][:TRIED])
        self._step("calibration text")

    def removal(self) -> Any:
        """The nats that each layer's removal costs, shape (layers,)."""
        grown = importance.by_removal(self.model, self.few)
        self._step("layers")
        return grown

    def order(self, anchors: Sequence[int], *, stored: bool = False) -> Path:
        """Write the ordered model, with the anchors as they are; `stored`: with every layer as it is."""
        count = self.parent
        units = Order(*(np.tile(np.arange(n), (count.layers, 1)) for n in (count.neurons, count.groups)))
        if not stored:
            found = importance.order(self.model, self.packed)
            for layer in set(range(count.layers)) - set(anchors):
                units.neurons[layer], units.groups[layer] = found.neurons[layer], found.groups[layer]
        target = self.folder / ("stored.gguf" if stored else f"{ORDERED}.gguf")
        write_ordered(self.path, units, target)
        self._step("order")
        return target

    def shape(self, ordered: forward.Model, share: float, anchors: Sequence[int]) -> Shape:
        """Of the shapes nearest to a share, the one with the lowest loss on calibration text."""

        def loss(shape: Shape) -> float:
            level = importance.cut(ordered, shape.groups, shape.neurons, anchors)
            *_, last = forward.residuals(level, self.few)
            return float(forward.losses(level, last, self.few).mean())

        near = _near(self.parent, share, anchors)
        best = min(near, key=loss) if len(near) > 1 else near[0]
        self._step("shapes")
        return best

    def recovered(self, ordered: forward.Model, shape: Shape, anchors: Sequence[int], rank: int | None) -> Any:
        found = recovery.recover(ordered, self.packed, shape, anchors, rank=rank)
        self._step("recovery")
        return found

    def _packed(self, texts: Sequence[Sequence[int]]) -> forward.Packed:
        return forward.Packed(texts, self.model.head_size, self.model.rope_base)

    def _step(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._clock
        self._clock = now


def calibration_texts(model: forward.Model, tokens: int, seed: int, prompts: Path = PROMPTS) -> list[list[int]]:
    """Answers that the model samples to the committed prompts, prompts included, `tokens` ids each at most.

    ArtifactError if that is too little text.
    """
    tokenizer = device_model.tokenizer()
    asked = [device_model.build(text) for text in pd.read_csv(prompts).prompt]
    ids = [tokenizer.tokenize(text.encode(), add_bos=False, special=True) for text in asked]
    ids = [one for one in ids if len(one) < tokens - 8]
    texts = calibration.sample(model, ids, tokens, tokenizer.token_eos(), np.random.default_rng(seed)) if ids else []
    total = sum(map(len, texts))
    if total < calibration.LEAST_TOKENS:
        least = calibration.LEAST_TOKENS
        raise ArtifactError(f"{total} tokens of calibration text are too few to order units by; at least {least}")
    return texts


def make(
    folder: Path,
    shares: Sequence[float],
    *,
    answer_tokens: int = 160,
    seed: int = 0,
    rank: int | None = None,
    anchors: Sequence[int] | None = None,
    shapes: dict[int, Shape] | None = None,
) -> Made:
    """Levels of the device model in a folder, with their manifest; the ordered model is the level of 100 %.

    shares         of block weights, below 1, in any order
    answer_tokens  of calibration text for each prompt, with the prompt
    rank           of an adapter for each level that makes up for what was cut; None: no adapters
    anchors        layers that are never cut; None: those whose removal costs most
    shapes         by percent, as an earlier run found them; None: found anew
    ArtifactError, in one line, for a model or a disk that cannot be used, or text that is too short.
    """
    uncut = range(importance.ANCHORS) if anchors is None else anchors
    _check(parent(device_model.smollm2_path()), shares, uncut, rank)
    shop = Workshop(folder, answer_tokens=answer_tokens, seed=seed)
    grown = shop.removal() if anchors is None else np.full(shop.parent.layers, np.nan)
    chosen = importance.anchors(grown) if anchors is None else sorted(anchors)
    layers = pd.DataFrame({"layer": range(shop.parent.layers), "removal": grown})
    layers["anchor"] = layers.layer.isin(chosen).astype(int)
    path_ordered = shop.order(chosen)
    ordered = forward.load(path_ordered)
    full = Shape(shop.parent.groups, shop.parent.neurons)
    rows, listed = [_row(1.0, full, path_ordered, None, [])], [_listed(1.0, path_ordered, None)]
    for share in sorted(shares, reverse=True):
        shape = shapes[round(100 * share)] if shapes else shop.shape(ordered, share, chosen)
        real = shop.parent.share(shape, chosen)
        target = folder / f"{round(100 * real)}.gguf"
        write_level(path_ordered, shape, chosen, target)
        shop._step("levels")
        adapter, found = None, list[recovery.Layer | None]()
        if rank is not None:
            _, found = shop.recovered(ordered, shape, chosen, rank)
            adapter = target.with_name(f"{target.stem}-rank{rank}.gguf")
            write_adapter(path_ordered, real, [layer and (layer.a, layer.b) for layer in found], adapter)
        rows.append(_row(real, shape, target, adapter, [layer for layer in found if layer]))
        listed.append(_listed(real, target, adapter))
    write_manifest(folder, shop.path, shop.parent, listed)
    close_files()
    return Made(folder, layers, pd.DataFrame(rows), shop.seconds)


def _near(about: Parent, share: float, anchors: Iterable[int]) -> list[Shape]:
    """The shapes whose share of the block weights is within 2 % of one. ArtifactError if there is none."""
    near = [shape for shape in about.shapes(share, anchors) if abs(about.share(shape, anchors) - share) < 0.02]
    if not near:
        lowest = about.share(Shape(1, about.block), anchors)
        raise ArtifactError(f"no level has {share:.1%} of the block weights; the smallest has {lowest:.1%}")
    return near


def _check(about: Parent, shares: Sequence[float], anchors: Collection[int], rank: int | None) -> None:
    """ArtifactError, before anything is computed, for levels that there cannot be, or two of the same percent."""
    percents = [round(100 * share) if 0 < share < 1 else 0 for share in shares]
    if not percents or not all(0 < percent < ORDERED for percent in percents):
        raise ArtifactError(f"shares must lie between 0 and 1, and be less than 99.5 %, got {list(shares)!r:.80}")
    if len(set(percents)) < len(percents):
        raise ArtifactError(f"two levels have the same percent: {', '.join(map(str, sorted(percents)))}")
    if rank is not None and not 1 <= rank <= about.width:
        raise ArtifactError(f"the rank of an adapter must be from 1 to {about.width}, got {rank}")
    for share in shares:
        _near(about, share, anchors)


def _row(share: float, shape: Shape, path: Path, adapter: Path | None, found: list[recovery.Layer]) -> dict[str, Any]:
    explained = np.mean([layer.explained for layer in found], axis=0) if found else (np.nan, np.nan)
    return {
        "percent": round(100 * share),
        "share": share,
        **shape._asdict(),
        "bytes": path.stat().st_size,
        "adapter_bytes": adapter.stat().st_size if adapter else 0,
        "explained": explained[0],
        "held_out": explained[1],
    }


def _listed(share: float, path: Path, adapter: Path | None) -> dict[str, Any]:
    about: dict[str, Any] = {"share": share, **_file(path)}
    return about | ({"adapter": _file(adapter)} if adapter else {})


def _file(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        return {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_manifest(folder: Path, path: Path, about: Parent, listed: Sequence[dict[str, Any]]) -> None:
    """The list of a folder's levels, last, since it shows that they are complete."""
    manifest = {"parent": {"file": path.name, "sha256": about.sha256}, "levels": list(listed)}
    write_together(folder, {MANIFEST: (json.dumps(manifest, indent=1) + "\n").encode()})
