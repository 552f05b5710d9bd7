"""What a pair's study says, in sentences."""

import numpy as np

from artifact.pair import splits
from artifact.pair.splits import DEVICE, DISCO, SERVER
from artifact.pair.study import Study
from artifact.pair.tables import by_hour


def on_length(study: Study) -> str:
    """Whether the server's TTFT depends on the prompt's length, in a sentence."""
    found = study.dependence
    if np.isnan(found.correlation):
        return "All prompts or all TTFTs are alike, so nothing is known of a dependence."
    words = {splits.DEPENDENT: "depends", 0.05: "may depend", np.inf: "does not measurably depend"}
    what = next(word for bound, word in words.items() if found.p_value < bound)
    return (
        f"The server's TTFT {what} on the prompt's length (Spearman's correlation {found.correlation:+.2f}, "
        f"p = {found.p_value:.2g})."
    )


def line(study: Study) -> str:
    """The device's TTFT as a line, in a sentence."""
    device = study.pair.device
    p50, p95 = np.quantile(study.length, [0.5, 0.95], method="inverted_cdf")
    fitted = "" if np.isnan(device.r_squared) else f", R² {device.r_squared:.3f}"
    return (
        f"tokens / {device.prefill_rate:.4g} per second + {device.startup:.3g} s{fitted}: "
        f"{device.ttft(p50):.3g} s for a prompt of {p50} tokens (the median), {device.ttft(p95):.3g} s for {p95} "
        f"(P95); then {device.decode_rate:.3g} tokens/s"
    )


def flips(study: Study) -> str:
    """At which price of energy the other endpoint becomes the constrained one."""
    prices = study.pair.prices
    if prices is None:
        return "No prices were given."
    if not prices.watt_hours > 0:
        return "Without the device's energy (WATT_HOURS) its tokens count as free."
    unit = type(prices)(prices.server_in, prices.server_out, prices.watt_hours, 1.0).model(study.pair.device)
    server = unit.server_prefill, unit.server_decode
    device = unit.device_prefill, unit.device_decode
    low, high = min(server) / max(device), max(server) / min(device)
    return (
        f"The server is the constrained endpoint while a kWh costs less than ${low:.3g}, the device above "
        f"${high:.3g}; in between the prices do not decide. Taken here: ${prices.kwh:.3g}."
    )


def device_first(study: Study) -> str:
    """How often the device's first token is the earlier one."""
    share = np.mean(study.pair.device.ttft(study.length) < study.ttft_s)
    return f"If both start at once, the device is first for {100 * share:.0f} % of the requests."


def when(study: Study) -> str:
    """By what time is divided."""
    return (
        "by hour of the day (UTC)"
        if by_hour(study)
        else "by quarters of the record, since it is no longer than two hours"
    )


def price_change(study: Study) -> str:
    """How the cost changes with the recommended plan; empty without prices."""
    if study.cost is None or not study.price(SERVER) > 0:
        return ""
    times = study.price(study.recommendation.policy) / study.price(SERVER)
    if abs(times - 1) < 0.005:
        return "It costs what server only costs."
    return (
        f"It costs {100 * (1 - times):.0f} % less than server only."
        if times < 1
        else (f"It costs {times:,.{0 if times >= 10 else 1}f} times what server only costs.")
    )


def without_server(study: Study) -> str:
    """What the device alone does, in a sentence."""
    row = study.at(DEVICE, study.shown_budget)
    price = "" if study.cost is None else f", ${study.price(DEVICE):.3g} per 1,000 requests"
    return f"Device only has a mean TTFT of {row['mean_s']:.3g} s and a P99 of {row['p99_s']:.3g} s{price}."


def saving(study: Study) -> str:
    """What migration saves of DiSCo's cost."""
    rows = study.costs[study.costs["policy"] == DISCO].set_index("migration")["$ per 1,000"]
    cut = 100 * (1 - rows["yes"] / rows["no"]) if rows["no"] > 0 else 0.0
    if cut < 0.5:
        return "No answer is worth moving at these prices and lengths."
    return f"Migration saves {cut:.0f} % of the cost of DiSCo's answers."


def answers(study: Study) -> str:
    """Whose lengths answers have."""
    known = study.pair.requests.output_tokens
    whose = "Alpaca's lengths, since the record has none" if np.isnan(known).all() else "the record's lengths"
    rate = (
        ""
        if not np.isnan(study.pair.server_rate)
        else f"; the server's pace is assumed, {study.server_rate:g} tokens/s"
    )
    return f"{whose}{rate}"
