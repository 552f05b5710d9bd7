"""A server with OpenAI's API that counts for itself what it is sent and when, and can be wrong in a chosen way."""

import contextlib
import json
import threading
import time

from disco_core.endpoints.openai import BEGINNING
from tests.helpers.loopback import chunk, reply, serving

MODEL = "counted"
TTFT_S, GAP_S = 0.02, 0.002


class Counting:
    """What a server saw: `arrived` (seconds of its clock), `asked` (bodies), `keys` (headers), `generated` tokens.

    key        that it wants, if any
    models     that it lists; None: it has no list
    continues  whether it goes on with an open assistant turn
    wrong      "json": one answer without a stream; "together": all chunks at once; "reasons": reasoning alone;
               "silent": ends without a token; "temperature": refuses one; "proxy": as LiteLLM's without a key
    fails      function of the number of measured requests so far: whether this one is refused
    base       end of the address that is given for it
    on         function that is called with that number before the answer
    """

    def __init__(self, *, key=None, models=(MODEL,), continues=True, wrong="", fails=None, on=None, base="/v1"):
        self.key, self.models, self.continues, self.wrong = key, models, continues, wrong
        self.base = base
        self.fails, self.on = fails or (lambda k: False), on or (lambda k: None)
        self.arrived, self.asked, self.keys, self.generated, self.listed = [], [], [], [], 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def running(self):
        """Its base URL, while the block runs."""
        with serving(self._answer) as url:
            self.url = f"{url}{self.base}"
            yield self.url

    @property
    def measured(self):
        """Numbers of the requests that are none of the probe's."""
        return [k for k, body in enumerate(self.asked) if "Count from one to ten" not in json.dumps(body)]

    def _answer(self, handler):
        now, given = time.monotonic(), handler.headers.get("authorization")
        if self.key and given != f"Bearer {self.key}":
            return reply(handler, {"error": {"message": f"no valid key: {given}"}}, 401)
        if self.wrong == "proxy":
            refused = {"error": {"message": "No connected db."}}
            return reply(handler, refused, 500 if handler.path == "/v1/models" else 400)
        if handler.path == "/v1/models":
            self.listed += 1
            rows = [{"id": name} for name in self.models or ()]
            return reply(handler, {"data": rows}) if self.models else reply(handler, {"error": "none"}, 404)
        if handler.path != "/v1/chat/completions":
            return reply(handler, {"error": {"message": "no such path"}}, 404)
        body = handler.asked
        if self.models and body["model"] not in self.models:
            return reply(handler, {"error": {"message": f"the model {body['model']} does not exist"}}, 404)
        if self.wrong == "temperature" and "temperature" in body:
            return reply(handler, {"error": {"message": "temperature is not supported with this model"}}, 400)
        with self._lock:
            self.arrived.append(now)
            self.asked.append(body)
            self.keys.append(given)
            number = len(self.measured) - 1
        if "Count from" not in json.dumps(body):
            self.on(number)
            if self.fails(number):
                return reply(handler, {"error": {"message": "out of order"}}, 503)
        return self._stream(handler, body)

    def _stream(self, handler, body):
        n = body["max_tokens"]
        open_turn = body["messages"][-1]["role"] == "assistant"
        words = [" five" if open_turn and self.continues and k == 0 else f" w{k}" for k in range(n)]
        assert not open_turn or body["messages"][-1]["content"] == BEGINNING
        with self._lock:
            self.generated.append(n)
        if self.wrong == "json":
            message = {"role": "assistant", "content": "".join(words)}
            return reply(handler, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        pieces = [chunk(role="assistant"), *(chunk(word) for word in words)]
        if self.wrong == "reasons":
            pieces = [{"choices": [{"index": 0, "delta": {"reasoning_content": word}}]} for word in words]
        if self.wrong == "silent":
            pieces = []
        pieces += [chunk(reason="stop"), chunk(usage=n)]
        raw = [b"data: " + json.dumps(one).encode() + b"\n\n" for one in pieces] + [b"data: [DONE]\n\n"]
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        time.sleep(TTFT_S)
        if self.wrong == "together":
            raw = [b"".join(raw)]
        for one in raw:
            handler.wfile.write(one)
            handler.wfile.flush()
            time.sleep(GAP_S)
        handler.close_connection = True
        return None
