"""What servers send: server-sent events out of bytes, characters out of halves, and their words for an error."""

import codecs
import html
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

LONGEST_EVENT = 1 << 22  # bytes
BROKEN = "\N{REPLACEMENT CHARACTER}"
# where servers put their words for an error, and what they call a content filter, in letters and digits alone
WORDS: tuple[str, ...] = ("error", "errors", "title", "message", "msg", "detail", "details", "error_description")
WORDS += (
    "error_message",
    "error_msg",
    "errorMessage",
    "reason",
    "description",
    "fault",
    "faultstring",
    "metadata",
    "raw",
)
FILTERS = {"contentfilter", "contentfiltered", "contentpolicyviolation", "responsibleaipolicyviolation", "safety"}
FILTERS |= {"recitation", "prohibitedcontent", "blocklist", "spii", "guardrail", "guardrailintervened", "moderation"}
FILTERS |= {"refusal", "sensitive", "filtered", "errortoxic", "imagesafety"}


class Events:
    """Server-sent events, as the HTML standard has them, from bytes that may be cut anywhere.

    stray   text that belongs to no event, such as a proxy's error page
    """

    def __init__(self) -> None:
        self.stray, self._rest, self._after_return = "", b"", False
        self._name, self._data = "", list[str]()

    def feed(self, raw: bytes) -> Iterator[tuple[str, str]]:
        """Name and data of the events that these bytes complete. ValueError for an event that is too long."""
        if raw:
            raw = raw.removeprefix(b"\n") if self._after_return else raw  # the second half of a CR LF
            self._after_return = raw.endswith(b"\r")
        lines = (self._rest + raw).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) + sum(map(len, self._data)) > LONGEST_EVENT:
            raise ValueError("an event that is too long")
        for raw_line in lines:
            line = raw_line.decode(errors="surrogateescape").removeprefix("\ufeff")
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field in ("data", "error"):  # older llama.cpp servers report an error under its own name
                self._data.append(value)
                self._name = "error" if field == "error" else self._name
            elif field == "event":
                self._name = value.strip().lower()
            elif line and field not in ("", "id", "retry"):
                self.stray = f"{self.stray}{line}\n"[:4000]
            elif not line:
                if self._data:
                    yield self._name, "\n".join(self._data)
                self._name, self._data = "", []


def objects(data: str) -> list[Any]:
    """The JSON of an event: one value, or one in each line where the blank lines between events are missing."""
    try:
        return [json.loads(data)]
    except (ValueError, RecursionError):
        lines = [line for line in data.split("\n") if line.strip(' "').upper() not in ("", "[DONE]")]
        return [json.loads(line) for line in lines]


class Characters:
    """Text whose pieces may each have half of a character: one surrogate of a pair, or some of its bytes."""

    def __init__(self) -> None:
        self._half, self._bytes = "", codecs.getincrementaldecoder("utf-8")("replace")

    def join(self, text: str, last: bool = False) -> str:
        """The characters that this piece completes; a half that no piece completes is U+FFFD."""
        text, self._half = self._half + text, ""
        if not last and "\ud800" <= text[-1:] < "\udc00":
            text, self._half = text[:-1], text[-1]
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        text = re.sub("[\ud800-\udc7f\udd00-\udfff]", BROKEN, text)
        return self._bytes.decode(text.encode(errors="surrogateescape"), last)


def normal(word: object) -> str:
    """A server's word in small letters and digits alone: `FINISH_REASON_STOP` and `Stop` are both "stop"."""
    return "".join(filter(str.isalnum, str(word).lower())).removeprefix("finishreason")


def error_words(value: Any, depth: int = 5) -> str:
    """The server's own words in an error of any shape; "" if there are none."""
    if isinstance(value, str) or depth == 0:
        return value if isinstance(value, str) else ""
    if isinstance(value, list):
        return "; ".join(filter(None, (error_words(one, depth - 1) for one in value)))
    if not isinstance(value, dict):
        return ""
    text = ": ".join(dict.fromkeys(filter(None, (error_words(value.get(key), depth - 1) for key in WORDS))))
    where = value.get("loc")  # a field that was not accepted
    return f"{'.'.join(map(str, where))}: {text}" if isinstance(where, list) and text else text


def is_filtered(value: Any, depth: int = 5) -> bool:
    """Whether an error says that a content filter stopped the answer."""
    if not isinstance(value, dict) or depth == 0:
        return False
    named = any(normal(value.get(key)) in FILTERS for key in ("code", "type", "status"))
    return named or any(is_filtered(one, depth - 1) for one in value.values())


def page(raw: bytes) -> Any:
    """What a reply that is no stream of events says: its JSON, or else its text without HTML."""
    text = raw.decode(errors="replace")
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    if re.search(r"<(!doctype|html|head|body|title|h1|center)\b", text[:4000], re.I):
        text = html.unescape(re.sub(r"(?is)<(script|style)\b.*?</\1>|<[^>]*>", " ", text[:4000]))
    return text


def is_error(event: dict[str, Any]) -> bool:
    """Whether an event reports an error."""
    return bool(event.get("error")) or "error" in (event.get("object"), event.get("type"))


def as_dict(value: Any) -> dict[str, Any]:
    """The value if it is a dict, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def token_count(value: Any) -> int | None:
    """The value if it is a number of tokens, otherwise None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**31
    return int(value) if good else None
