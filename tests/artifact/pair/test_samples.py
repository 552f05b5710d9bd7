"""Readers on what the tools themselves wrote, beside the times that the server they asked had logged."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from artifact.errors import ArtifactError
from artifact.pair.readers import Requests, read

SAMPLES = Path(__file__).parent / "samples"
ALL = {  # sample -> form, log, and by how many seconds its TTFT may exceed the server's
    "guidellm.json": ("GuideLLM", "guidellm", 0.01),
    "aiperf.jsonl": ("AIPerf", "aiperf", 0.01),
    "litellm_spend_logs.csv": ("LiteLLM", "litellm", 0.08),
    "litellm_standard.jsonl": ("LiteLLM", "litellm", 0.08),
}
CLOCK_S = 0.002  # what the database rounds to and the two clocks differ by
REFUSED = 2  # requests of each run that the server refused


def logged(name: str) -> pd.DataFrame:
    return pd.read_csv(SAMPLES / f"{name}.log.csv")


def paired(found: Requests, log: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The order of both by prompt and TTFT: requests that came within milliseconds may have changed places."""
    return np.lexsort((found.ttft_s, found.prompt_tokens)), np.lexsort((log["ttft_s"], log["prompt_tokens"]))


@pytest.mark.parametrize("sample", ALL)
def test_requests_are_those_that_the_server_answered(sample: str) -> None:
    form, name, _ = ALL[sample]
    found, log = read(SAMPLES / sample), logged(name)
    answered = log.dropna()
    assert found.form == form
    assert found.failed == REFUSED == (log["output_tokens"] == 0).sum()
    ours, theirs = paired(found, answered)
    assert found.prompt_tokens[ours].tolist() == answered["prompt_tokens"].to_numpy()[theirs].tolist()
    assert found.output_tokens[ours].tolist() == answered["output_tokens"].to_numpy()[theirs].tolist()


@pytest.mark.parametrize("sample", ALL)
def test_times_are_those_of_the_server_and_the_way_there(sample: str) -> None:
    _, name, way_s = ALL[sample]
    found, log = read(SAMPLES / sample), logged(name).dropna()
    ours, theirs = paired(found, log)
    longer_s = found.ttft_s[ours] - log["ttft_s"].to_numpy()[theirs]
    assert (longer_s > 0).all()
    assert (longer_s < way_s).all()
    assert found.began_s is not None
    later_s = log["arrived"].to_numpy()[theirs] - (found.began_s + found.arrival_s[ours])
    assert (later_s > -CLOCK_S).all()
    assert (later_s < way_s).all()


def test_notes_say_what_was_left_out() -> None:
    few = "{} requests: with fewer than 100, the P99 is the slowest of them"
    assert read(SAMPLES / "guidellm.json").notes == (few.format(14),)
    assert read(SAMPLES / "aiperf.jsonl").notes == ("left out: 2 of the warm-up", few.format(14))
    left = "left out: 1 not streamed or from LiteLLM's cache"
    for name in ("litellm_spend_logs.csv", "litellm_standard.jsonl"):
        assert read(SAMPLES / name).notes == (left, few.format(15))


def test_litellm_table_and_payloads_agree() -> None:
    table, payloads = (read(SAMPLES / name) for name in ("litellm_spend_logs.csv", "litellm_standard.jsonl"))
    assert table.prompt_tokens.tolist() == payloads.prompt_tokens.tolist()
    np.testing.assert_allclose(table.ttft_s, payloads.ttft_s, atol=0.0011)  # the table has milliseconds
    np.testing.assert_allclose(table.arrival_s, payloads.arrival_s, atol=0.0011)


def test_vllm_result() -> None:
    found = read(SAMPLES / "vllm.json")
    assert (found.form, found.failed, len(found), found.began_s) == ("vLLM", 1, 11, None)
    assert found.ttft_s.min() > 0


@pytest.mark.parametrize("sample", [*ALL, "vllm.json"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.7, 0.999])
def test_a_record_that_was_cut_off_is_refused_or_shorter(tmp_path: Path, sample: str, share: float) -> None:
    text = (SAMPLES / sample).read_bytes()
    path = tmp_path / sample
    path.write_bytes(text[: int(len(text) * share)])
    try:
        assert len(read(path)) <= len(read(SAMPLES / sample))
    except ArtifactError as error:
        assert "\n" not in str(error)  # noqa: PT017
