"""After the benchmarks: each figure as measured beside what is asked of it, and the ratios of this one run."""

import pytest

# figure, limit, how to get it from {benchmark: (median, spread) in s}
MS = 1e3
FIGURES = [
    ("build F from 100,000 samples (ms)", "<= 4", "test_build_f", MS),
    ("plan DiSCo-S, 100,000 lengths (ms)", "<= 0.5", "test_plan_disco_s", MS),
    ("plan DiSCo-D, 100,000 lengths (ms)", "<= 1", "test_plan_disco_d", MS),
    ("simulate 1,000,000 requests (s)", "<= 0.15", "test_simulate[1000000]", 1.0),
    ("simulate 10,000,000 requests (s)", "<= 1.5", "test_simulate[10000000]", 1.0),
]
RATIOS = [
    ("DiSCo-S over its transcription (times)", ">= 20", "test_plan_disco_s"),
    ("DiSCo-D over its transcription (times)", ">= 20", "test_plan_disco_d"),
]
OVERHEADS = [
    ("stream over a direct call, TTFT (ms)", "<= 1", "first_token_s"),
    ("stream over a direct call, a token (ms)", "<= 0.1", "token_s"),
    ("the same without a rule (ms)", "<= 0.1", "without_rule_s"),
]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    found = {bench.name: bench for bench in getattr(session, "benchmarks", []) if bench}
    if not found:
        return
    terminalreporter.section("asked and measured (median, first to third quartile)")

    def say(label, limit, median, low, high):
        terminalreporter.write_line(f"{label:42} {limit:>7}  {median:8.3f}  {low:.3f} to {high:.3f}")

    stats = {name: bench.stats for name, bench in found.items()}
    for label, limit, name, scale in FIGURES:
        if name in found:
            say(label, limit, *(scale * getattr(stats[name], part) for part in ("median", "q1", "q3")))
    for label, limit, name in RATIOS:
        if {name, f"{name}_plain"} <= found.keys():
            fast, plain = stats[name], stats[f"{name}_plain"]
            say(label, limit, plain.median / fast.median, plain.q1 / fast.q3, plain.q3 / fast.q1)
    for name in found:
        if name.startswith("test_draw"):
            rate = (1 / getattr(stats[name], part) for part in ("median", "q3", "q1"))  # a million requests each
            say(f"draw {name[10:-1]} (million requests/s)", ">= 20", *rate)
    if "test_simulate_memory" in found:
        used = found["test_simulate_memory"].extra_info["bytes_a_request"]
        say("simulate, extra bytes a request", "<= 200", used, used, used)
    if "test_stream_overhead" in found:
        for label, limit, name in OVERHEADS:
            say(label, limit, *(MS * seconds for seconds in found["test_stream_overhead"].extra_info[name]))
