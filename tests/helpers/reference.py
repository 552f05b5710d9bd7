"""The race of one request, event by event, in plain Python."""

import heapq
import math


def race(server_delay, device_delay, server_ttft, device_ttft):
    """One request: (TTFT, winner, endpoints started). Tokens of an instant come before starts, the server's first."""
    ttft = {"server": server_ttft, "device": device_ttft}
    events = [(server_delay, 2, "server"), (device_delay, 3, "device")]
    heapq.heapify(events)
    started = set()
    while True:
        time, kind, end = heapq.heappop(events)
        if kind < 2:
            return time, end, started
        if math.isfinite(time):
            started.add(end)
            heapq.heappush(events, (time + ttft[end], 0 if end == "server" else 1, end))
