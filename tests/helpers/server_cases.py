"""What real servers send, as bytes, and what is right: after public reports, rebuilt as small inputs of our own.

The kinds: A a field of another shape, B a finished answer, C an unfinished one, D framing, E what is billed,
F the reason of a failure, G the seam of a continuation, H a character in halves.
"""

import json
import socket
from dataclasses import dataclass, field
from typing import Any

import disco_core as dc
from disco_core.endpoints.base import Prefix, Token
from disco_core.errors import FilteredError
from tests.helpers.loopback import piece

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Case:
    """One answer of a server.

    sent         bytes of the body; `status` and `media` go before it
    ends         "properly"; or "close", "reset" or "hang", without the last chunk of the transfer encoding
    before       text of the answer before; the request then goes on from it, by `options`' continuation
    texts        of the tokens, in order; `reasoning` those of reasoning
    undelivered  tokens made or billed beyond those
    failure      type of the error that ends the answer, with all of these words; None: it is complete
    request      fields that the request must have
    native       for LlamaServerEndpoint, otherwise for OpenAIEndpoint
    """

    name: str
    kind: str
    sent: bytes
    texts: tuple[str, ...] = ()
    failure: type[dc.EndpointError] | None = None
    words: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = ()
    undelivered: int = 0
    status: int = 200
    media: str | None = "text/event-stream"
    ends: str = "properly"
    before: str = ""
    max_tokens: int = 16
    options: dict[str, Any] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)
    native: bool = False

    @property
    def generated(self) -> tuple[Token, ...]:
        return (Token(0, self.before),) if self.before else ()

    @property
    def prefix(self) -> Prefix:
        return Prefix("Why is the sea salty?", self.generated, self.max_tokens)

    def answer(self, handler: Any) -> None:
        """Write it, as the `answer` of `loopback.serving`."""
        handler.send_response(self.status)
        if self.media is not None:
            handler.send_header("Content-Type", self.media)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        if self.sent:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(self.sent), self.sent))
        handler.wfile.flush()
        if self.ends == "properly":
            handler.wfile.write(b"0\r\n\r\n")
            return
        handler.close_connection = True
        if self.ends == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            handler.connection.close()
        elif self.ends == "hang":
            handler.connection.recv(1)  # until the client closes


def data(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def C(delta: Any = None, reason: Any = None, /, usage: Any = None, **more: Any) -> bytes:
    """A chunk with one choice; a text is its delta's content."""
    choice = {"index": 0} | (
        {} if delta is None else {"delta": {"content": delta} if isinstance(delta, str) else delta}
    )
    choice |= ({} if reason is None else {"finish_reason": reason}) | more
    return data({"choices": [choice]} | ({} if usage is None else {"usage": usage}))


def choices(*several: Any, **more: Any) -> bytes:
    """A chunk with these choices."""
    return data({"choices": several} | more)


def billed(n: Any, **details: Any) -> dict[str, Any]:
    return {"prompt_tokens": 9, "completion_tokens": n} | details


def _case(kind: str, name: str, *sent: bytes, **expected: Any) -> Case:
    return Case(name, kind, b"".join(sent), **expected)


SALT = C("Salt."), C({}, "stop"), DONE
STOPS = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
WHOLE = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Salt."}, "finish_reason": "stop"}]}
FILTER_RESULT = data({"choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {}}]})
HM = C({"reasoning_content": "hm"}) * 16
ECHO = {"before": "The sea is", "options": {"continuation": "prefix"}, "texts": (" salty", ".")}
ANEW = {
    "before": "The sea is salty for the rain takes salt, which is a",
    "options": {"continuation": "continue_final_message"},
    "failure": dc.ProtocolError,
    "words": ("began the answer anew",),
}

ANEW_HM = ANEW | {"reasoning": ("hm",)}

SHAPES = [
    _case(
        "A",
        "azure, a choice without delta at the end",
        C("Salt."),
        C({}, "stop"),
        FILTER_RESULT,
        DONE,
        texts=("Salt.",),
    ),
    _case(
        "A",
        "azure, a choice without delta in the middle",
        C("Salt"),
        FILTER_RESULT,
        C("."),
        C({}, "stop"),
        DONE,
        texts=("Salt", "."),
    ),
    _case(
        "A",
        "azure, no choice at first",
        data({"choices": [], "prompt_filter_results": [{}]}),
        *SALT,
        texts=("Salt.",),
    ),
    _case(
        "A",
        "magistral, content in parts",
        C({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}),
        C({"content": [{"type": "text", "text": "Salt"}]}),
        C("."),
        C({"content": []}, "stop"),
        DONE,
        texts=("Salt", "."),
        reasoning=("hm",),
    ),
    _case(
        "A", "a part alone", C({"content": {"type": "text", "text": "Salt"}}), C({}, "stop"), DONE, texts=("Salt",)
    ),
    _case(
        "A",
        "null wherever it can be",
        data(b"null"),
        data({"choices": None, "usage": None}),
        data({"choices": [None]}),
        data({"choices": [{"delta": None, "logprobs": None, "finish_reason": None}], "error": None}),
        C({"role": "assistant", "content": None, "tool_calls": None, "reasoning_content": None}),
        *SALT,
        texts=("Salt.",),
    ),
    _case(
        "A",
        "other shapes",
        data({"choices": {"delta": {"content": "Salt"}}}),
        data({"choices": [7]}),
        data({"choices": "x"}),
        C({"content": 7}),
        C({"content": True}),
        C(".", logprobs=[1], usage=[3]),
        C({}, "stop", usage=billed(None)),
        DONE,
        texts=("Salt", "7", "."),
    ),
    _case("A", "numbers", C({"content": 0}), C({"content": {"text": 0}}), C("", "stop"), DONE, texts=("0", "0")),
    _case("A", "no chunk at all", data({"object": "status"}), data({}), *SALT, texts=("Salt.",)),
    _case(
        "A",
        "logprobs of another shape",
        C("Salt", logprobs={"content": [{"token": None}, 7]}),
        C(".", logprobs={"tokens": 7}),
        C({}, "stop"),
        DONE,
        texts=("Salt", "."),
        undelivered=1,
    ),
    _case(
        "A", "a finish reason as an object", C("Salt."), C({}, {"type": "stop", "matched": 2}), DONE, texts=("Salt.",)
    ),
    _case(
        "A",
        "a server that does not stream",
        json.dumps(WHOLE).encode(),
        media="application/json",
        texts=("Salt.",),
    ),
    _case(
        "A",
        "a second choice",
        choices({"index": 0, "delta": {"content": "Salt."}}, {"index": 1, "delta": {"content": "x"}}),
        C({}, "stop"),
        texts=("Salt.",),
    ),
    _case(
        "A",
        "an index of its own",
        data({"choices": [{"delta": {"role": "assistant"}}]}),
        data({"choices": [{"index": 3, "delta": {"content": "Salt."}}]}),
        data({"choices": [{"finish_reason": "stop"}]}),
        texts=("Salt.",),
    ),
    _case(
        "A",
        "a refusal is the answer",
        C({"content": None, "refusal": "I will not."}),
        C({}, "stop"),
        DONE,
        texts=("I will not.",),
    ),
    _case(
        "A",
        "older TGI, an index that counts tokens",
        choices({"index": 1, "delta": {"content": "Salt"}}),
        choices({"index": 2, "delta": {"content": "."}}),
        choices({"index": 3, "delta": {}, "finish_reason": "stop"}),
        texts=("Salt", "."),
    ),
    _case(
        "A",
        "bedrock, the answer's index after the reasoning's",
        choices({"index": 0, "delta": {"reasoning_content": "hm"}}),
        choices({"index": 1, "delta": {"content": "Salt."}}),
        choices({"index": 0, "delta": {}, "finish_reason": "stop"}),
        reasoning=("hm",),
        texts=("Salt.",),
    ),
    _case(
        "A",
        "openrouter, details of reasoning alone",
        C({"content": "", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]}),
        C({"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]}),
        *SALT,
        reasoning=("hm",),
        texts=("Salt.",),
    ),
    _case(
        "A",
        "an error without content",
        choices({"index": 0, "delta": {"content": "Salt."}}, error={"message": "", "type": "", "code": None}),
        C({}, "stop"),
        texts=("Salt.",),
    ),
]

REASONS = [
    "stop",
    "STOP",
    "eos",
    "eos_token",
    "end",
    "end_turn",
    "stop_sequence",
    "FINISH_REASON_STOP",
    "COMPLETE",
    "endoftext",
    "stop_words",
    "end_id",
    "eom",
    "</s>",
    "<|im_end|>",
    "stop_str",
    "matched_stop",
]
FINISHED = [
    *(
        _case("B", f"finish reason {reason}", C("Salt."), C(None, reason), DONE, texts=("Salt.",))
        for reason in REASONS
    ),
    *(
        _case("B", f"a {ends} after stop", C("Salt."), C({}, "stop"), texts=("Salt.",), ends=ends)
        for ends in ("close", "reset", "hang")
    ),
    *(
        _case(
            "B",
            f"a {ends} after llama.cpp's stop",
            data(piece("Salt.", [97], 1)),
            data(piece("", [], 1, "eos")),
            texts=("Salt.",),
            ends=ends,
            native=True,
        )
        for ends in ("close", "reset", "hang")
    ),
    _case(
        "B", "the reason with the last text", C("Salt", None), C(".", "eos_token"), ends="reset", texts=("Salt", ".")
    ),
    _case("B", "gemini's finishReason", C("Salt."), choices({"index": 0, "finishReason": "STOP"}), texts=("Salt.",)),
    _case("B", "a reason with every chunk", C("Salt", "stop"), C(".", "stop"), DONE, texts=("Salt", ".")),
    _case("B", "a reason that says not yet", C("Salt", "not_finished"), C(".", "eos_token"), texts=("Salt", ".")),
    _case("B", "no blank line after the last event", C("Salt."), C({}, "stop").rstrip(), texts=("Salt.",)),
    _case(
        "B", "an error after stop", C("Salt."), C({}, "stop"), data({"error": {"message": "late"}}), texts=("Salt.",)
    ),
    _case("B", "unreadable after stop", C("Salt."), C({}, "stop"), b"data: {half\n\n", texts=("Salt.",)),
    _case(
        "B",
        "older llama.cpp",
        data(piece("Salt.", [97], 1)),
        data({"content": "", "tokens": [], "tokens_predicted": 1, "stop": True, "stopped_eos": True}),
        texts=("Salt.",),
        native=True,
    ),
    _case(
        "B",
        "length as asked, by usage",
        C("Salt is"),
        C({}, "length", usage=billed(16)),
        DONE,
        texts=("Salt is",),
        undelivered=15,
    ),
    _case(
        "B", "length, and nothing else is known", C("Salt"), C(" is"), C({}, "length"), DONE, texts=("Salt", " is")
    ),
    _case(
        "B",
        "length as asked, by pieces",
        C("Salt"),
        C(" is"),
        C({}, "max_tokens"),
        DONE,
        texts=("Salt", " is"),
        max_tokens=2,
    ),
]

UNFINISHED = [
    _case(
        "C",
        "reasoning up to the limit",
        HM,
        C("", "length"),
        DONE,
        reasoning=("hm",) * 16,
        failure=dc.CutError,
        words=("0 of 16 tokens",),
    ),
    _case(
        "C",
        "reasoning, billed, up to the limit",
        HM,
        C("Salt"),
        C({}, "length", usage=billed(16)),
        DONE,
        reasoning=("hm",) * 16,
        texts=("Salt",),
        failure=dc.CutError,
    ),
    _case(
        "C",
        "hidden reasoning up to the limit",
        C("Salt"),
        C({}, "length", usage=billed(16, completion_tokens_details={"reasoning_tokens": 15})),
        DONE,
        texts=("Salt",),
        undelivered=15,
        failure=dc.CutError,
        words=("1 of 16 tokens", "length"),
    ),
    _case(
        "C",
        "below what was asked",
        C("Salt"),
        C({}, "length", usage=billed(3)),
        DONE,
        texts=("Salt",),
        undelivered=2,
        failure=dc.CutError,
        words=("3 of 16 tokens",),
    ),
    _case(
        "C",
        "mistral's model_length",
        C("Salt"),
        C({}, "model_length", usage=billed(3)),
        DONE,
        texts=("Salt",),
        undelivered=2,
        failure=dc.CutError,
        words=("model_length",),
    ),
    *(
        _case(
            "C",
            f"{reason}, then stop",
            C("Salt"),
            C({}, reason, usage=billed(3)),
            C({}, "stop"),
            DONE,
            texts=("Salt",),
            undelivered=2,
            failure=FilteredError if reason == "content_filter" else dc.CutError,
            words=(reason,),
        )
        for reason in ("content_filter", "length", "abort")
    ),
    _case("C", "length without any text", C({}, "length"), DONE, failure=dc.CutError),
    _case("C", "a role, then stop", C({"role": "assistant"}), C({}, "stop"), DONE),
    _case("C", "nothing but [DONE]", DONE, failure=dc.CutError, words=("without a finish reason",)),
    _case("C", "no reason, [DONE]", C("Salt"), DONE, texts=("Salt",), failure=dc.CutError),
    _case("C", "a close before the reason", C("Salt"), ends="close", texts=("Salt",), failure=dc.CutError),
    _case(
        "C", "the reason is cut", C("Salt"), C({}, "stop")[:-12], ends="close", texts=("Salt",), failure=dc.CutError
    ),
    *(
        _case(
            "C",
            f"finish reason {reason}",
            C("Salt"),
            C({}, reason),
            DONE,
            texts=("Salt",),
            failure=dc.CutError,
            words=(reason,),
        )
        for reason in (
            "tool_calls",
            "insufficient_system_resource",
            "abort",
            "error",
            "cancelled",
            "time_limit",
            "incomplete",
            "function_call_filter: MALFORMED_FUNCTION_CALL",
        )
    ),
    *(
        _case(
            "C",
            f"below what was asked, {reason}",
            C("Salt"),
            C({}, reason, usage=billed(3)),
            DONE,
            texts=("Salt",),
            undelivered=2,
            failure=dc.CutError,
            words=("3 of 16 tokens", reason),
        )
        for reason in ("MAX_TOKENS", "token_limit", "context_length_exceeded", "model_context_window_exceeded")
    ),
    _case(
        "C",
        "a reason with every chunk, then a close",
        C("Salt", "stop"),
        C(" is", "stop"),
        ends="close",
        texts=("Salt", " is"),
        failure=dc.CutError,
        words=("broke",),
    ),
    _case(
        "C",
        "usage after length",
        C("Salt"),
        C({}, "length"),
        data({"choices": [], "usage": billed(3)}),
        DONE,
        texts=("Salt",),
        undelivered=2,
        failure=dc.CutError,
        words=("3 of 16 tokens",),
    ),
    _case(
        "C",
        "gemini, reasoning in the total alone",
        C("Salt", "length", usage=billed(1, total_tokens=25)),
        DONE,
        texts=("Salt",),
        undelivered=15,
        failure=dc.CutError,
        words=("1 of 16 tokens",),
    ),
    *(
        _case(
            "C",
            f"filter {reason}",
            C("Salt"),
            C({}, reason),
            DONE,
            texts=("Salt",),
            failure=FilteredError,
            words=(reason,),
        )
        for reason in (
            "content_filter",
            "SAFETY",
            "content_filtered",
            "RECITATION",
            "guardrail_intervened",
            "content_filter: PROHIBITED_CONTENT",
            "IMAGE_RECITATION",
            "MODEL_ARMOR",
        )
    ),
    _case(
        "C",
        "azure's late filter",
        C("Salt"),
        C({}, "stop"),
        C({}, "content_filter"),
        DONE,
        texts=("Salt",),
        failure=FilteredError,
    ),
    _case(
        "C",
        "azure's filter of prompts",
        json.dumps(
            {
                "error": {
                    "code": "content_filter",
                    "message": "The response was filtered",
                    "innererror": {"code": "ResponsibleAIPolicyViolation"},
                }
            }
        ).encode(),
        status=400,
        media="application/json",
        failure=FilteredError,
        words=("400", "The response was filtered"),
    ),
]

BOM = b"\xef\xbb\xbf"
FRAMES = [
    _case(
        "D",
        "half an object under a name is no keep-alive",
        b'event: chunk\ndata: {"choices":\n\n',
        *SALT,
        failure=dc.ProtocolError,
    ),
    _case("D", "retry and its blank line", b"retry: 3000\n\n", *SALT, texts=("Salt.",)),
    _case("D", "a ping event", C("Salt"), b"event: ping\n\n", C("."), C({}, "stop"), DONE, texts=("Salt", ".")),
    _case(
        "D", "a ping event with data", b"event: ping\ndata: {}\n\nevent: ping\ndata: now\n\n", *SALT, texts=("Salt.",)
    ),
    _case("D", "a bare data line", b"data:\n\n", C("Salt"), b"data\n\n", C("."), C({}, "stop"), texts=("Salt", ".")),
    _case(
        "D",
        "ids and pings",
        b": ping\n\nid: 1\n" + C("Salt") + b": ping\n\nid: 2\n" + C(".") + b"id\n",
        C({}, "stop"),
        texts=("Salt", "."),
    ),
    _case(
        "D",
        "an event name on each",
        b"event: message\n" + C("Salt."),
        b"event: chunk\n" + C({}, "stop"),
        texts=("Salt.",),
    ),
    _case("D", "carriage returns", b"".join(SALT).replace(b"\n", b"\r"), texts=("Salt.",)),
    _case("D", "CR LF", b"".join(SALT).replace(b"\n", b"\r\n"), texts=("Salt.",)),
    _case(
        "D",
        "carriage returns, llama.cpp",
        (data(piece("a", [97], 1)) + data(piece("", [], 1, "eos"))).replace(b"\n", b"\r"),
        texts=("a",),
        native=True,
    ),
    _case(
        "D",
        "pings, llama.cpp",
        b"retry: 1\n\nevent: ping\n\ndata:\n\n:\n\n",
        data(piece("a", [97], 1)),
        data(piece("", [], 1, "eos")),
        texts=("a",),
        native=True,
    ),
    _case("D", "a byte order mark", BOM, *SALT, texts=("Salt.",)),
    _case("D", "no space after data", b"".join(SALT).replace(b"data: ", b"data:"), texts=("Salt.",)),
    _case(
        "D",
        "one object over two data lines",
        b'data: {"choices":[{"delta":\ndata: {"content":"Salt."}}]}\n\n',
        C({}, "stop"),
        texts=("Salt.",),
    ),
    _case(
        "D", "no blank lines between", b"".join(SALT).replace(b"\n\n", b"\ndata: null\n") + b"\n", texts=("Salt.",)
    ),
    _case("D", "media type in capitals", *SALT, media="Text/Event-Stream; Charset=UTF-8", texts=("Salt.",)),
    _case(
        "D",
        "media type in capitals, llama.cpp",
        data(piece("a", [97], 1)),
        data(piece("", [], 1, "eos")),
        media="TEXT/EVENT-STREAM;charset=utf-8",
        texts=("a",),
        native=True,
    ),
    _case("D", "no media type", *SALT, media=None, texts=("Salt.",)),
    *(
        _case("D", f"events as {media}", *SALT, media=media, texts=("Salt.",))
        for media in ("application/json", "application/x-ndjson", "text/html")
    ),
    _case("D", "data twice", *(b"data: " + event for event in SALT), texts=("Salt.",)),
    _case("D", "data on the next line", *(event.replace(b" ", b"\n ", 1) for event in SALT), texts=("Salt.",)),
    _case("D", "lines of JSON", *(event[6:-1] for event in SALT[:2]), texts=("Salt.",)),
    _case("D", "words as data", b"data: ping\n\n", *SALT, b"event: end\ndata: over\n\n", texts=("Salt.",)),
    *(
        _case(
            "D",
            f"{word} as data in mid-answer",
            C("Sal"),
            b"data: " + word.encode() + b"\n\n",
            C("t."),
            *SALT[1:],
            texts=("Sal", "t."),
        )
        for word in ("ping", "keep-alive", "[DONE]")
    ),
    *(
        _case(
            "C",
            f"{name} in mid-answer",
            C("Salt"),
            sent,
            C("."),
            *SALT[1:],
            texts=("Salt",),
            failure=failure,
            words=words,
        )
        for name, sent, failure, words in (
            ("a page as data", b"data: <html><h1>502 Bad Gateway</h1></html>\n\n", dc.CutError, ("502 Bad Gateway",)),
            ("a page", b"<html><h1>502 Bad Gateway</h1></html>\n\n", dc.CutError, ("502 Bad Gateway",)),
            ("bytes", b"\xff\xfe\x00\x80" * 40 + b"\n\n", dc.ProtocolError, ("unreadable",)),
        )
    ),
    _case(
        "D",
        "an unknown field in mid-answer",
        C("Sal"),
        b"trace-id: 17\nnonce\n\n",
        C("t."),
        *SALT[1:],
        texts=("Sal", "t."),
    ),
    *(
        _case("D", f"a whole answer, {name}", sent, texts=("Salt.",))
        for name, sent in {
            "as events": json.dumps(WHOLE).encode(),
            "over several lines": json.dumps(WHOLE, indent=1).encode(),
            "and [DONE] on the same line": json.dumps(WHOLE).encode() + DONE,
        }.items()
    ),
]

SPENT = billed(10, completion_tokens_details={"reasoning_tokens": 8})
HIDDEN = {"max_tokens": 2, "texts": ("Salt", "."), "undelivered": 8}
BILLS = [
    _case(
        "E",
        "usage in every chunk",
        C("Salt", usage=billed(11)),
        C(".", usage=billed(12)),
        C({}, "stop", usage=billed(12)),
        DONE,
        texts=("Salt", "."),
        undelivered=10,
    ),
    _case(
        "E",
        "forty hidden tokens",
        C("Salt", usage=billed(41)),
        C(".", usage=billed(42)),
        C({}, "stop"),
        DONE,
        texts=("Salt", "."),
        undelivered=40,
    ),
    _case(
        "E",
        "usage at the end",
        *SALT[:2],
        data({"choices": [], "usage": billed(7)}),
        DONE,
        texts=("Salt.",),
        undelivered=6,
    ),
    _case(
        "E", "usage in the choice", C("Salt."), C({}, "stop", usage=billed(7)), DONE, texts=("Salt.",), undelivered=6
    ),
    _case(
        "E",
        "usage of zeros at the end",
        C("Salt.", usage=billed(7)),
        C({}, "stop", usage=billed(0) | {"prompt_tokens": 0, "total_tokens": 0}),
        texts=("Salt.",),
        undelivered=6,
    ),
    _case("E", "less billed than sent", C("Salt"), C("."), C({}, "stop", usage=billed(0)), DONE, texts=("Salt", ".")),
    _case(
        "E",
        "reasoning is billed",
        C({"reasoning": "hm"}),
        C("Salt."),
        C({}, "stop", usage=billed(9)),
        DONE,
        texts=("Salt.",),
        reasoning=("hm",),
        undelivered=7,
    ),
    *(
        _case("E", f"usage {name} all that was asked for", C("Salt"), *sent, DONE, **HIDDEN)
        for name, sent in {
            "with": [C(".", "length", usage=SPENT)],
            "after": [C("."), C({}, "length", usage=SPENT)],
            "in a chunk of its own after": [C(".", "length"), data({"choices": [], "usage": SPENT})],
        }.items()
    ),
    _case(
        "E", "groq's usage", C("Salt."), choices(*STOPS, x_groq={"usage": billed(7)}), texts=("Salt.",), undelivered=6
    ),
    *(
        _case(
            "E",
            f"{name}, reasoning beside the completion",
            C("Salt."),
            C({}, "stop", usage=billed(made, total_tokens=69, completion_tokens_details=details)),
            DONE,
            texts=("Salt.",),
            undelivered=59,
        )
        for name, made, details in (("gemini", 1, None), ("xai", 1, {"reasoning_tokens": 59}), ("a gateway", 0, {}))
    ),
]


def _json(kind: str, name: str, status: int, body: Any, *words: str, **more: Any) -> Case:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    expected = {"failure": dc.RefusedError, "media": "application/json", "words": (str(status), *words)} | more
    return Case(name, kind, sent, status=status, **expected)


ERRORS = [
    _json(
        "F",
        "detail with a field",
        422,
        {"detail": [{"loc": ["body", "stream_options"], "msg": "not permitted"}]},
        "body.stream_options: not permitted",
    ),
    _json("F", "detail", 404, {"detail": "Not Found here"}, "Not Found here"),
    _json("F", "error as a text", 404, {"error": "model 'm' not found"}, "model 'm' not found"),
    _json("F", "message", 400, {"object": "error", "message": "too long", "code": 400}, "too long"),
    _json(
        "F",
        "mistral",
        422,
        {"object": "error", "message": {"detail": [{"loc": ["body", "n"], "msg": "no"}]}},
        "body.n: no",
    ),
    _json("F", "a list", 400, [{"error": {"code": 400, "message": "bad key", "status": "INVALID"}}], "bad key"),
    _json("F", "errors", 403, {"success": False, "errors": [{"code": 10, "message": "not yours"}]}, "not yours"),
    _json(
        "F",
        "openrouter",
        502,
        {"error": {"message": "Provider returned error", "metadata": {"raw": "out of memory"}}},
        "Provider returned error",
        "out of memory",
    ),
    _json("F", "problem details", 503, {"title": "Overloaded", "detail": "come back"}, "Overloaded: come back"),
    _json("F", "unknown shape", 500, {"why": "because"}, "because"),
    _json("F", "an event", 400, data({"error": {"message": "too long"}}) + DONE, "too long"),
    _json("F", "minimax", 400, {"base_resp": {"status_code": 1008, "status_msg": "no balance"}}, "no balance"),
    _json(
        "F",
        "openrouter's moderation",
        403,
        {"error": {"code": 403, "message": "not this", "metadata": {"flagged_input": "x"}}},
        "not this",
        failure=FilteredError,
    ),
    _json(
        "F",
        "dashscope's inspection",
        400,
        [{"error": {"code": "data_inspection_failed", "message": "not this"}}],
        "not this",
        failure=FilteredError,
    ),
    _json("F", "a wrong address", 404, {}, "no such address or model", "/v1/chat/completions"),
    _json("F", "plain text", 500, b"upstream connect error", "upstream connect error", media="text/plain"),
    _json("F", "nothing", 500, b""),
    _json(
        "F",
        "HTML",
        502,
        b"<html><head><title>502 Bad Gateway</title><style>a{}</style></head><body><p>cloud &amp; co",
        "502 Bad Gateway cloud & co",
        media="text/html",
    ),
    _case(
        "F",
        "TGI's error",
        data({"error": "Input too long", "error_type": "validation"}),
        failure=dc.CutError,
        words=("Input too long",),
    ),
    _case(
        "F",
        "an error event",
        b'event: error\ndata: {"code":400,"details":"too many"}\n\n',
        failure=dc.CutError,
        words=("too many",),
    ),
    _case(
        "F", "an error event in words", b"event: error\ndata: too many\n\n", failure=dc.CutError, words=("too many",)
    ),
    _case(
        "F",
        "an error event, cut",
        b'event: error\ndata: {"message":"too many"}',
        failure=dc.CutError,
        words=("too many",),
    ),
    _case(
        "F",
        "llama.cpp's error line",
        b'error: {"code":400,"message":"too long"}\n\n',
        failure=dc.CutError,
        words=("too long",),
    ),
    _case(
        "F",
        "llama.cpp's error line, natively",
        b'error: {"code":400,"message":"too long"}\n\n',
        failure=dc.CutError,
        words=("too long",),
        native=True,
    ),
    _case(
        "F",
        "an object that is an error",
        data({"object": "error", "message": "no memory"}),
        failure=dc.CutError,
        words=("no memory",),
    ),
    _case(
        "F", "an error in mid-stream", C("Salt"), C({"content": ""}, "error"), texts=("Salt",), failure=dc.CutError
    ),
    _case(
        "F",
        "openrouter in mid-stream",
        C("Salt"),
        data(
            {
                "error": {"code": 502, "message": "Provider disconnected"},
                "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
            }
        ),
        texts=("Salt",),
        failure=dc.CutError,
        words=("Provider disconnected",),
    ),
    _case(
        "F",
        "an object with a message",
        C("Salt"),
        data({"message": "quota used up"}),
        DONE,
        texts=("Salt",),
        failure=dc.CutError,
        words=("quota used up",),
    ),
    *(
        _case("F", name, C("Salt"), *sent, DONE, texts=("Salt",), failure=dc.CutError, words=("no slot",))
        for name, sent in {
            "groq, beside a finish reason": [choices(*STOPS, x_groq={"id": "r", "error": "no slot"})],
            "groq, without choices": [choices(x_groq={"id": "r", "error": "no slot"})],
            "openrouter, in the choice": [C({}, "error", error={"code": 502, "message": "no slot"})],
            "an error in the delta": [C({"error": {"message": "no slot"}})],
            "sglang, a reason with words": [C({}, {"type": "abort", "message": "no slot"})],
            "gemini, a list": [data([{"error": {"code": 503, "message": "no slot", "status": "UNAVAILABLE"}}])],
            "minimax": [data({"choices": None, "base_resp": {"status_code": 1008, "status_msg": "no slot"}})],
            "a message with a capital": [data({"Message": "no slot"})],
            "cerebras": [data({"message": "no slot", "type": "too_many_tokens_error", "param": "quota"})],
            "responses": [data({"type": "response.failed", "response": {"error": {"message": "no slot"}}})],
            "after half an event": [b'data: {"choices":[{"ind\n', data({"error": {"message": "no slot"}})],
            "as data, in words": [b"data: no slot\n\n"],
        }.items()
    ),
    _case(
        "F",
        "words without an event",
        C("Salt"),
        b"Internal Server Error\n",
        texts=("Salt",),
        failure=dc.CutError,
        words=("Internal Server Error",),
    ),
    _case(
        "F", "JSON without an event", b'{"error":\n{"message":"no slot"}}\n', failure=dc.CutError, words=("no slot",)
    ),
    _case(
        "F",
        "200 and JSON",
        json.dumps({"error": {"message": "no credit"}}).encode(),
        media="application/json",
        failure=dc.CutError,
        words=("no credit",),
    ),
    _case(
        "F",
        "200 and HTML",
        b"<html><body>Sign in</body></html>",
        media="text/html",
        failure=dc.ProtocolError,
        words=("Sign in", "text/html"),
    ),
]

SEAMS = [
    _case("G", "echo in one piece", C("The sea is"), C(" salty"), C("."), C({}, "stop"), DONE, **ECHO),
    _case("G", "echo in pieces", C("The"), C(" sea"), C(" is"), C(" salty"), C("."), C({}, "stop"), DONE, **ECHO),
    _case("G", "echo and more in one piece", C("The sea is salty"), C("."), C({}, "stop"), DONE, **ECHO),
    _case("G", "echo after white space", C(" The sea is"), C(" salty"), C("."), C({}, "stop"), DONE, **ECHO),
    _case(
        "G",
        "echo without the last space",
        C("The sea is"),
        C("salty"),
        C({}, "stop"),
        before="The sea is ",
        texts=("salty",),
        options={"continuation": "prefix"},
        request={"max_tokens": 16},
    ),
    _case("G", "nothing but an echo", C("The sea is"), C({}, "stop"), before="The sea is", options=ECHO["options"]),
    _case("G", "no echo", C(" salty"), C("."), C({}, "stop"), DONE, **ECHO),
    _case(
        "G",
        "it begins alike, and goes on",
        C("The"),
        C(" end."),
        C({}, "stop"),
        before="The sea is wide. ",
        texts=("The", " end."),
        options={"continuation": "prefix"},
    ),
    _case("G", "echo after an empty line", C("\n\nThe sea is"), C(" salty"), C("."), C({}, "stop"), DONE, **ECHO),
    _case(
        "G",
        "a repetition goes on",
        C(" very very"),
        C(" good"),
        C({}, "stop"),
        before="very very",
        texts=(" very very", " good"),
        options={"continuation": "plain"},
    ),
    _case("G", "a new beginning after reasoning", C({"reasoning": "hm"}), C("The sea is salty because"), **ANEW_HM),
    _case("G", "a new beginning", C("The sea is salty because"), C({}, "stop"), DONE, **ANEW),
    _case("G", "a new beginning in pieces", C("The"), C(" sea"), C(" is"), C(" blue"), C({}, "stop"), DONE, **ANEW),
    _case("G", "a new beginning that ends", C("The sea is salty"), C({}, "stop"), DONE, **ANEW),
]


def raw_chunk(content: bytes) -> bytes:
    return data(b'{"choices":[{"index":0,"delta":{"content":"' + content + b'"}}]}')


WAVE = "\N{WATER WAVE}"
HALVES = [
    _case("H", "two surrogates", C("\ud83c"), C("\udf0a"), C({}, "stop"), DONE, texts=(WAVE,), undelivered=1),
    _case(
        "H",
        "in reasoning, both",
        C({"reasoning": "\ud83c"}),
        C({"reasoning": "\udf0a"}),
        *SALT,
        reasoning=(WAVE,),
        texts=("Salt.",),
        undelivered=1,
    ),
    _case(
        "H",
        "with reasoning between",
        C("\ud83c"),
        C({"reasoning": "hm"}),
        C("\udf0a"),
        C({}, "stop"),
        reasoning=("hm",),
        texts=(WAVE,),
        undelivered=1,
    ),
    _case("H", "half at the limit", C("a\ud83c", "length", usage=billed(16)), texts=("a", "\ufffd"), undelivered=14),
    _case("H", "with text around", C("a\ud83c"), C("\udf0ab"), C({}, "stop"), DONE, texts=("a", f"{WAVE}b")),
    _case("H", "half at the end", C("a\ud83c"), C({}, "stop"), DONE, texts=("a", "\ufffd")),
    _case("H", "the wrong half", C("\udf0a"), C("b"), C({}, "stop"), DONE, texts=("\ufffd", "b")),
    _case("H", "no second half", C("\ud83c"), C("b"), C({}, "stop"), DONE, texts=("\ufffdb",), undelivered=1),
    _case(
        "H",
        "bytes",
        raw_chunk(b"\xf0\x9f"),
        raw_chunk(b"\x8c\x8a."),
        C({}, "stop"),
        DONE,
        texts=(f"{WAVE}.",),
        undelivered=1,
    ),
    _case(
        "H",
        "in parts",
        C({"content": [{"type": "text", "text": "\ud83c"}]}),
        C("\udf0a"),
        C({}, "stop"),
        texts=(WAVE,),
        undelivered=1,
    ),
    _case(
        "H", "in reasoning", C({"reasoning": "\ud83c"}), C("a"), C({}, "stop"), reasoning=("\ufffd",), texts=("a",)
    ),
]

CASES = [*SHAPES, *FINISHED, *UNFINISHED, *FRAMES, *BILLS, *ERRORS, *SEAMS, *HALVES]
