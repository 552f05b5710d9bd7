"""The seam of a continuation as text: an echo of the text before it is dropped, a new beginning is refused."""

from collections.abc import Iterator

ENDS = (".", "!", "?", ":", ";", "\n", "。", "！", "？")  # of a sentence; the next may well begin as the answer did


class Seam:
    """Feed it a continuation's pieces: those that repeat the beginning of the text before are held back.

    echoed   whether all of the text before was repeated, which was dropped
    """

    def __init__(self, before: str) -> None:
        self.echoed, self._held = False, list[str]()
        self._before, self._text = before.lstrip(), before.strip()  # the echo may have lost the white space
        self._open = bool(self._text)
        ended = before.rstrip(" \"'*_)”").endswith(ENDS)
        self._words, self._characters = (4, 20) if ended else (3, 10)  # that are repeated by no coincidence

    def feed(self, piece: str) -> Iterator[str]:
        """The pieces to show. ValueError if the continuation is a new beginning."""
        if not self._open:
            yield piece
            return
        self._held.append(piece)
        text = "".join(self._held).lstrip()
        if len(text) >= len(self._before) or not self._before.startswith(text):
            yield from self.end()

    def end(self) -> Iterator[str]:
        """The pieces still held back, once the continuation differs or ends. ValueError as in `feed`."""
        text, before = "".join(self._held).lstrip(), self._text
        pieces, self._held = self._held, []
        if not self._open:
            return
        self._open = False
        if text.startswith(before) and (len(before.split()) > 1 or len(before) > 7):
            self.echoed = True
            rest = text[len(before) :].removeprefix(self._before[len(before) :])
            pieces = [rest] if rest else []
        else:
            same = (i for i, (a, b) in enumerate(zip(text, before, strict=False)) if a != b)
            common = text[: next(same, min(len(text), len(before)))]
            if len(common) >= self._characters and len(common.split()) >= self._words:
                raise ValueError("it began the answer anew")
        yield from pieces
