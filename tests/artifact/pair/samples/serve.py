"""A server on loopback that streams OpenAI's API with known waits, and logs what it did; it made the samples here.

python serve.py PORT LOG.csv    standard library only; ends with a signal

Each request to /v1/chat/completions waits a time drawn for it before its first token. The log has one line per
request, in order of their first tokens: the UNIX time at which the request had been read, the prompt's words, the
tokens sent, and the seconds until the first content chunk was written, which is empty if the answer was not streamed
or the request was refused, as every seventh is.
"""

import json
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "m"
EVERY = 7  # one request in so many is refused
GAP_S = 0.01
lock = threading.Lock()
waits = random.Random(0)
count = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.whole(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "loopback"}]})

    def whole(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        global count
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        arrived, start = time.time(), time.perf_counter()
        with lock:
            count += 1
            number, wait_s = count, waits.uniform(0.05, 0.4)
        content = "".join(str(message.get("content")) for message in asked.get("messages", []))
        prompt, length = len(content.split()), asked.get("max_completion_tokens") or asked.get("max_tokens") or 8
        if number % EVERY == 0:
            self.log_row(arrived, prompt, 0, None)
            self.whole(500, {"error": {"message": "refused on purpose", "type": "server_error", "code": 500}})
            return
        time.sleep(wait_s)
        usage = {"prompt_tokens": prompt, "completion_tokens": length, "total_tokens": prompt + length}
        if not asked.get("stream"):
            self.log_row(arrived, prompt, length, None)
            message = {"role": "assistant", "content": " word" * length}
            choice = {"index": 0, "message": message, "finish_reason": "length"}
            self.whole(200, self.head("chat.completion") | {"choices": [choice], "usage": usage})
            return
        self.stream(length, usage, arrived, start, prompt)

    def head(self, kind):
        return {"id": f"chatcmpl-{time.time_ns()}", "object": kind, "created": int(time.time()), "model": MODEL}

    def stream(self, length, usage, arrived, start, prompt):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        head = self.head("chat.completion.chunk")
        for index in range(length):
            delta = {"content": " word"} | ({"role": "assistant"} if index == 0 else {})
            last = "length" if index == length - 1 else None
            self.event(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": last}]})
            if index == 0:
                self.log_row(arrived, prompt, length, time.perf_counter() - start)
            time.sleep(GAP_S)
        self.event(head | {"choices": [], "usage": usage})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def event(self, content):
        self.chunk(b"data: " + json.dumps(content).encode() + b"\n\n")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    @staticmethod
    def log_row(arrived, prompt, length, ttft_s):
        text = "" if ttft_s is None else f"{ttft_s:.6f}"
        with lock, open(sys.argv[2], "a", encoding="utf-8") as log:
            log.write(f"{arrived:.6f},{prompt},{length},{text}\n")


if __name__ == "__main__":
    with open(sys.argv[2], "w", encoding="utf-8") as begun:
        begun.write("arrived,prompt_tokens,output_tokens,ttft_s\n")
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
