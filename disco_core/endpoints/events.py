"""What servers send: server-sent events out of bytes, characters out of halves, and their words for an error."""

import codecs
import html
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

LONGEST_EVENT, LONGEST_STRAY = 1 << 22, 4000  # bytes, characters
DECODER = json.JSONDecoder()
BROKEN = "\N{REPLACEMENT CHARACTER}"
BETWEEN = re.compile(r'\A(\s|data:|"?\[DONE\]"?)*', re.I)  # what stands between the objects of an event
FIELD = re.compile(r"[\w-]+\s*\Z")  # the name of a field in an event
# where servers put their words for an error, and what they call a content filter, in letters and digits alone
WORDS = {"error", "errors", "title", "message", "msg", "detail", "details", "errordescription", "errormessage"}
WORDS |= {"errormsg", "statusmsg", "baseresp", "reason", "description", "fault", "faultstring", "metadata", "raw"}
FILTER = re.compile(
    "contentfilter|safety|recitation|prohibitedcontent|blocklist|spii|guardrail|moderation|refusal|sensitive|filtered"
    "|toxic|policyviolation|inspection|modelarmor|flagged"
)


class Events:
    """Server-sent events, as the HTML standard has them, from bytes that may be cut anywhere.

    JSON in lines of its own counts as data, as servers send it that do not stream, or that lost the field's name.

    stray     text that belongs to no event, such as a proxy's error page
    garbled   whether some of it is no field at all, not even one that nobody knows
    """

    def __init__(self) -> None:
        self.stray, self.garbled, self._rest, self._after_return = "", False, b"", False
        self._name, self._data, self._bare = "", list[str](), False

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
            self._bare = bool(line) and (self._bare or (not self.stray and line.lstrip()[:1] in ("{", "[")))
            if field in ("data", "error"):  # older llama.cpp servers report an error under its own name
                self._data.append(value.removeprefix(" "))
                self._name = "error" if field == "error" else self._name
            elif self._bare:
                self._data.append(line)
            elif field == "event":
                self._name = value.strip().lower()
            elif line and field not in ("", "id", "retry"):
                self.stray = f"{self.stray}{line}\n"[:LONGEST_STRAY]
                self.garbled |= not FIELD.match(field)
            elif not line:
                if self._data:
                    yield self._name, "\n".join(self._data)
                self._name, self._data = "", []


def objects(data: str) -> list[Any]:
    """The JSON values in the data of an event, of which there may be none or several.

    ValueError for anything else, unless an error is among them: it may come after an event that was cut.
    """
    values: list[Any] = []
    failed: ValueError | None = None
    while data := BETWEEN.sub("", data, count=1):
        try:
            value, end = DECODER.raw_decode(data)
            values += value if isinstance(value, list) else [value]
        except (ValueError, RecursionError) as error:
            failed, end = ValueError(str(error)), len(data.partition("\n")[0])
        data = data[end:]
    if failed and not any(map(error_in, values)):
        raise failed
    return values


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
    found = (error_words(one, depth - 1) for key, one in as_dict(value).items() if normal(key) in WORDS)
    text = ": ".join(dict.fromkeys(filter(None, found)))
    where = as_dict(value).get("loc")  # a field that was not accepted
    return f"{'.'.join(map(str, where))}: {text}" if isinstance(where, list) and text else text


def is_filtered(value: Any, depth: int = 8) -> bool:
    """Whether an error says that a content filter stopped the answer."""
    if isinstance(value, list):
        return depth > 0 and any(is_filtered(one, depth - 1) for one in value)
    error = as_dict(value)
    named = any(FILTER.search(normal(error.get(key))) for key in ("code", "type", "status"))
    return named or "flagged_input" in error or is_filtered([*error.values()], depth - 1)


def page(raw: bytes) -> Any:
    """What a reply that is no stream of events says: its JSON, or else its text without HTML."""
    with suppress(ValueError):
        if found := [one for _, data in Events().feed(raw + b"\n\n") for one in objects(data)]:
            return found if len(found) > 1 else found[0]
    text = raw.decode(errors="replace")
    if re.search(r"<(!doctype|html|head|body|title|h1|center)\b", text[:4000], re.I):
        text = html.unescape(re.sub(r"(?is)<(script|style)\b.*?</\1>|<[^>]*>", " ", text[:4000]))
    return text


def error_in(event: Any) -> dict[str, Any]:
    """The part of an event that reports an error: all of it, a choice, what Groq adds; empty if there is none."""
    event = as_dict(event)
    choices = event.get("choices")
    places = [event, event.get("x_groq"), event.get("response"), *(choices if isinstance(choices, list) else [])]
    for place in map(as_dict, [*places, *(as_dict(place).get("delta") for place in places)]):
        error = place.get("error")
        if any(error.values()) if isinstance(error, dict) else error:
            return place
    return event if "error" in (event.get("object"), event.get("type")) else {}


def as_dict(value: Any) -> dict[str, Any]:
    """The value if it is a dict, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def token_count(value: Any) -> int | None:
    """The value if it is a number of tokens, otherwise None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**31
    return int(value) if good else None
