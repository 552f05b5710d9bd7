"""Refinement of a prompt while the cloud prefills it: the least informative tokens are left out for the device.

P/D-Device (arXiv 2508.09035) refines the prompt from data the cloud already has; how it scores tokens is not known
to us. Here a token's score is its self-information under the cloud's model, and the share rho with the highest scores
is kept in order.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from disco_core.systems.compression import keep, protected_spans, self_information

if TYPE_CHECKING:
    from llama_cpp import Llama


def refine(pieces: Sequence[tuple[str, bool]], model: "Llama", rho: float) -> list[int]:
    """Ids of the refined prompt, in order: the share rho of the tokens of all pieces of (text, protected).

    All protected tokens are kept, then the most informative ones. Errors of `protected_spans`,
    `self_information`, `keep`.
    """
    ids, protected = protected_spans(pieces, model)
    scores = np.zeros(ids.size) if rho == 1 else self_information(model, ids.tolist())  # no scores needed
    kept: list[int] = ids[keep(scores, rho, protected)].tolist()
    return kept
