"""Prompts of one's own: which files are read, which are refused, and prompts of a chosen length."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact.data import traces
from artifact.errors import ArtifactError
from artifact.pair.prompts import load, texts_of_length


def test_ours_are_those_of_the_table():
    assert [prompt[0]["content"] for prompt in load(None)] == traces.table("prompts")["prompt"].tolist()


def test_a_csv_and_json_lines_are_read(tmp_path):
    table = tmp_path / "p.csv"
    table.write_text('id,prompt\n1,"Why, though?"\n2,\n3,How?\n')
    assert [prompt[0]["content"] for prompt in load(table)] == ["Why, though?", "How?"]
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    lines = tmp_path / "p.jsonl"
    lines.write_text(json.dumps({"messages": chat}) + "\n" + json.dumps({"prompt": "How?"}) + "\n")
    assert load(lines) == [chat, [{"role": "user", "content": "How?"}]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("question\nWhy?\n", "no prompts: a column prompt or messages is needed, there are question"),
        ("prompt,id\n,1\n", "no prompts"),
        ("", "the file is empty"),
        ('{"messages": []}', "row 1: "),
        ('{"messages": [{"role": "user", "content": ""}]}', "row 1: prompt must not be empty"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "row 1: prompt must not end with the assistant"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "row 1: prompt must have messages with a role"),
        ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "row 1: "),
        ('{"prompt": 12}', "row 1: "),
        ('{"prompt": [1, 2, 3]}', "row 1: a text or messages are needed"),
    ],
)
def test_a_file_without_prompts_is_one_line(tmp_path, text, words):
    path = tmp_path / "prompts"
    path.write_text(text)
    with pytest.raises(ArtifactError) as told:
        load(path)
    assert str(told.value).startswith(f"{path}: ")
    assert words in str(told.value)
    assert "\n" not in str(told.value)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=4), st.integers(0, 30))
def test_prompts_of_a_length_have_the_most_words_that_fit(lengths, template):
    """With a tokenizer of one token a word, and a chat template of so many tokens, the length is exact."""
    made = texts_of_length(load(None)[:5], lengths, lambda prompt: template + len(prompt[0]["content"].split()))
    assert [template + len(prompt[0]["content"].split()) for prompt in made] == [
        max(n, template + 1) for n in lengths
    ]
