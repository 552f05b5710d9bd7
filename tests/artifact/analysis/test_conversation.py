"""Where the chat leaves an answer, what it says of it, and that nothing of a token is taken for HTML."""

import pytest

import disco_core as dc
from artifact.analysis import conversation


def streamed(*texts, source=dc.End.DEVICE):
    return [dc.StreamedToken(i, text, None, source, 0.1 * i, 0.2 * i) for i, text in enumerate(texts)]


@pytest.mark.parametrize("text", ["It is salt.", "Is it?", 'She said "salt."', "It is salt.\n", "**It is.**"])
def test_a_sentence_ends(text):
    assert conversation.ends_sentence(text)


@pytest.mark.parametrize("text", ["", " ", "It is", "Reasons:\n1.", "salt,"])
def test_no_sentence_ends(text):
    assert not conversation.ends_sentence(text)


def test_an_answer_that_is_cut_is_left_at_its_last_complete_sentence():
    tokens = streamed("One", ".", " Two", ".", " Three")
    record = dc.Record(tokens=tokens)
    left = [n for n in range(1, 6) if conversation.is_last_sentence(tokens[:n], record, 5)]
    assert left == [4]
    # an answer that may still go on is not left
    assert not any(conversation.is_last_sentence(tokens[:n], record, 6) for n in range(1, 6))


def test_tokens_are_escaped_and_have_the_look_of_their_endpoint():
    page = conversation.coloured([*streamed("<b>"), *streamed(" x\ny", source=dc.End.SERVER)], cut=True)
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.index("underline") < page.index("x<br>y")
    assert "…" in page


def test_the_report_compares_with_the_server_alone():
    record = dc.Record(ttft_s=0.5, winner=dc.End.DEVICE, tokens=streamed(*"abcd"), prefill=[10, 10], decode=[0, 4])
    lines = conversation.report(record, 4, 10, 2.0, dc.CostModel(1e-6, 2e-6, 3e-6, 4e-6), 1.0)
    assert lines[0] == "first token after 0.50 s from the device; the server alone: about 1.00 s"
    assert lines[-2] == "answer complete for the reader after 2.0 s; the server alone: about 2.5 s"
    # 10 prompt tokens at each endpoint and 4 of the device, against 10 and 4 of the server
    assert lines[-1] == "cost of a million such answers: $56.00; the server alone: $18.00"
    assert conversation.report(dc.Record(), 0, 10, 2.0, dc.CostModel(1, 1, 1, 1), 1.0) == ["an empty answer"]
