"""The seam of a continuation as text: an echo of the text before it is dropped, a new beginning is refused.

Both look like a text that goes on by repeating itself. So they are looked for only as far as the server is known, or
the text makes it likely, to do so.
"""

from itertools import takewhile

from disco_core.errors import ProtocolError

ENDS = (".", "!", "?", ":", ";", "\n", "。", "！", "？")  # of a sentence; the next may well begin as the answer did


class Seam:
    """Feed it a continuation's pieces: those that repeat the beginning of the text before are held back.

    echoes   whether the server is known to repeat the text before: an echo of any length is dropped; False: it is
             known to go on, and all is let through; None, if unknown: a text that is itself a repetition may go on as
             one, and so may a short one
    echoed   whether all of the text before was repeated, which was dropped
    """

    def __init__(self, name: str, before: str, echoes: bool | None = None) -> None:
        self.echoed, self._name, self._held = False, name, list[str]()
        self._before, self._text = before.lstrip(), before.strip()  # the echo may have lost the white space
        self._echoes = echoes
        self._open = bool(self._text) and (echoes or (echoes is None and not repetitive(before)))
        ended = before.rstrip(" \"'*_)”").endswith(ENDS)
        self._words, self._characters = (4, 20) if ended else (3, 10)  # that are repeated by no coincidence

    def join(self, piece: str, last: bool = False) -> list[str]:
        """The pieces to show, all of them with the last. ProtocolError if the continuation is a new beginning."""
        pieces = self._held = [*self._held, piece] if piece else self._held
        text, before = "".join(pieces).lstrip(), self._text
        if self._open and not last and len(text) < len(self._before) and self._before.startswith(text):
            return []
        self._held, was_open, self._open = [], self._open, False
        if not was_open:
            return pieces
        if text.startswith(before) and (self._echoes or len(before.split()) > 1 or len(before) > 7):
            self.echoed = True
            rest = text[len(before) :].removeprefix(self._before[len(before) :])
            return [rest] if rest else []
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(text, before, strict=False))
        common = "".join(one for one, _ in pairs)
        if len(common) >= self._characters and len(common.split()) >= self._words:
            raise ProtocolError(self._name, "it began the answer anew")
        return pieces


def repetitive(text: str) -> bool:
    """Whether a text is one part over and over, such as "hahaha" or "very very"."""
    words = " ".join(text.split())
    return any(one in (one + one)[1:-1] for one in (words, f"{words} "))
