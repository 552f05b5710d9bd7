"""What the chat shows of an answer: who wrote which words, what it took and cost, and the server alone beside it."""

import html
from collections.abc import Iterable, Sequence

import numpy as np

from disco_core.cost import CostModel, End, Ledger
from disco_core.record import Record, StreamedToken

LOOK = {  # on white: grey and brown as in every figure, dark enough to be read
    End.SERVER: "color:#5f5f5f",
    End.DEVICE: "color:#8a5a2b;text-decoration:underline dotted",
}
_PAGE = "background:white;color:black;padding:4px 8px;line-height:1.6"
_CLOSING = "\"'”’)*"  # what may follow the sign at the end of a sentence


def legend() -> str:
    """Which colour stands for which endpoint, as HTML."""
    names = (f'<span style="{look}">written by the {end.name.lower()}</span>' for end, look in LOOK.items())
    return f'<div style="{_PAGE}">{" &nbsp; ".join(names)}</div>'


def coloured(tokens: Iterable[StreamedToken], *, cut: bool = False) -> str:
    """Tokens as HTML, each in the look of its endpoint, its time in a tooltip; with … where the answer is cut off."""
    spans = (
        f'<span style="{LOOK[one.source]}" title="{one.source.name.lower()}, {one.generated_s:.2f} s">'
        f"{html.escape(one.text).replace(chr(10), '<br>')}</span>"
        for one in tokens
    )
    return f'<div style="{_PAGE}">{"".join(spans)}{" …" if cut else ""}</div>'


def ends_sentence(text: str) -> bool:
    """Whether a text ends where a sentence does; the number of a list's entry, such as "2.", is no end.

    >>> ends_sentence('It is "salty."'), ends_sentence("It is"), ends_sentence("Because: 1.")
    (True, False, False)
    """
    words = text.rstrip().rstrip(_CLOSING).split()
    return bool(words) and words[-1].endswith((".", "!", "?")) and not words[-1][:-1].isdigit()


def at_end(shown: Sequence[StreamedToken]) -> bool:
    """Whether these tokens end where a sentence does."""
    return ends_sentence("".join(one.text for one in shown))


def is_last_sentence(shown: Sequence[StreamedToken], record: Record, max_tokens: int) -> bool:
    """Whether an answer that is cut at `max_tokens` is best left here: no later sentence of it is complete."""
    if len(record.tokens) < max_tokens or not at_end(shown):
        return False
    later = range(len(shown) + 1, len(record.tokens) + 1)
    return not any(at_end(record.tokens[:n]) for n in later)


def report(
    record: Record, shown: int, prompt_tokens: int, reading_rate: float, prices: CostModel, server_ttft_s: float
) -> list[str]:
    """What an answer took and cost, and what the server alone would have taken and cost, in sentences.

    shown           tokens that the reader got
    server_ttft_s   TTFT of the server alone for this request, as far as it is known
    """
    if record.ttft_s is None or record.winner is None:
        return ["an empty answer", *map(str, record.failures)]
    n, reading_s = len(record.tokens), (shown - 1) / reading_rate
    alone = Ledger(np.array([prompt_tokens]), np.array([n]), np.zeros(1, np.int64), np.zeros(1, np.int64))
    charges = [np.array([its[end]]) for end in End for its in (record.prefill, record.decode)]
    cost, cost_alone = (1e6 * float(one.cost(prices)[0]) for one in (Ledger(*charges), alone))
    late = 1000 * float(np.quantile(record.late_s, 0.99)) if record.late_s else 0.0
    return [
        f"first token after {record.ttft_s:.2f} s from the {record.winner.name.lower()}; "
        f"the server alone: about {server_ttft_s:.2f} s",
        *(f"hand-over to the {one.target.name.lower()} after {one.at} tokens" for one in record.handovers),
        *(f"no hand-over: {why}" for why in record.refusals),
        *(f"failed: {why}" for why in record.failures),
        f"{record.delay_num} of {n} tokens late, each released within {late:.0f} ms of its time",
        f"answer complete for the reader after {record.ttft_s + reading_s:.1f} s; "
        f"the server alone: about {server_ttft_s + reading_s:.1f} s",
        f"cost of a million such answers: ${cost:,.2f}; the server alone: ${cost_alone:,.2f}",
    ]
