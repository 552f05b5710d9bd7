"""After the benchmarks: each figure as measured beside what is asked of it, and the ratios of this one run."""

import pytest

# figure, limit, how to get it from {benchmark: (median, spread) in s}
MS = 1e3
FIGURES = [
    ("build F from 100,000 samples (ms)", "<= 4", "test_build_f", MS),
    ("plan DiSCo-S, 100,000 lengths (ms)", "<= 0.5", "test_plan_disco_s", MS),
    ("plan DiSCo-D, 100,000 lengths (ms)", "<= 1", "test_plan_disco_d", MS),
    ("plan optimal, device constrained, given F (ms)", "<= 15", "test_plan_optimal[Constraint.DEVICE]", MS),
    ("plan optimal, server constrained, given F (ms)", "<= 15", "test_plan_optimal[Constraint.SERVER]", MS),
    ("build F and plan optimal, 100,000 of both (ms)", "<= 30", "test_f_and_plan_optimal", MS),
    ("least mean by a linear programme, 500 x 300 (ms)", "", "test_linear_programme", MS),
    ("simulate 1,000,000 requests (s)", "<= 0.15", "test_simulate[1000000]", 1.0),
    ("simulate 10,000,000 requests (s)", "<= 1.5", "test_simulate[10000000]", 1.0),
]
RATIOS = [
    ("DiSCo-S over its transcription (times)", ">= 20", "test_plan_disco_s"),
    ("DiSCo-D over its transcription (times)", ">= 20", "test_plan_disco_d"),
]
MICRO = 1e6
# of live streams: figure, limit, benchmark, the name it has there, scale
LIVE = [
    ("stream over a direct call, first token (ms)", "<= 0.5", "test_stream_overhead", "first_token_s", MS),
    ("the same in a race (ms)", "", "test_stream_overhead", "raced_first_token_s", MS),
    ("stream over a direct call, a token (ms)", "<= 0.05", "test_stream_overhead", "token_s", MS),
    ("the same without a rule (ms)", "", "test_stream_overhead", "without_rule_s", MS),
    *(
        (
            f"{n} streams{how}, {what}",
            limit if (n, how) == (500, "") else "",
            f"test_concurrent_streams[{n}-{on}]",
            *part,
        )
        for n, on, how in (
            (500, True, ""),
            (500, False, " without collector"),
            (1000, True, ""),
            (1000, False, " without collector"),
            (4000, True, ""),
        )
        for what, limit, *part in (
            ("median error (ms)", "", "median_s", MS),
            ("P99 error (ms)", "< 20", "p99_s", MS),
            ("largest error (ms)", "", "max_s", MS),
            ("CPU a token (us)", "", "cpu_a_token_s", MICRO),
        )
    ),
    ("answer of 100,000 tokens, first half, a token (us)", "", "test_long_answer", "early_s", MICRO),
    ("the same, second half (us)", "flat", "test_long_answer", "late_s", MICRO),
    ("the same, memory (bytes a token)", "<= 400", "test_long_answer", "bytes_a_token", 1.0),
    *(
        (f"over httpx alone, first token: {name} (ms)", "", "test_peers", name, MS)
        for name in ("OpenAIEndpoint", "dc.stream", "litellm.acompletion", "LiteLLM's Router", "LiteLLM's proxy")
    ),
    ("2,000 streams in turn, growth (bytes a stream)", "none", "test_streams_in_turn", "bytes_a_stream", 1.0),
    ("the same, tasks that are left", "0", "test_streams_in_turn", "tasks", 1.0),
]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    found = {bench.name: bench for bench in getattr(session, "benchmarks", []) if bench}
    if not found:
        return
    terminalreporter.section("asked and measured (median, first to third quartile)")

    def say(label, limit, median, low, high):
        terminalreporter.write_line(f"{label:58} {limit:>7}  {median:8.3f}  {low:.3f} to {high:.3f}")

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
    for label, limit, name, part, scale in LIVE:
        if name in found and part in found[name].extra_info:
            say(label, limit, *(scale * value for value in found[name].extra_info[part]))
