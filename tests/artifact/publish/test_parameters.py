"""A notebook's parameters: read with type and meaning, and given by name."""

import re

import pytest

from artifact.__main__ import main
from artifact.publish import parameters, run
from disco_core.errors import InputError
from tests.helpers.notebooks import outputs


def test_parameters_are_read_with_type_default_and_meaning(notebook):
    found = parameters.parameters(notebook())
    assert list(found) == ["budget", "draws", "quick", "out", "lengths", "plain"]
    assert found["budget"] == parameters.Parameter(
        "budget", "float", "0.3", "share of prompt tokens the constrained endpoint may prefill"
    )
    assert found["plain"].type == "int"


def test_text_is_read_as_the_declared_type(notebook):
    given = {"budget": "1", "draws": "7", "quick": "True", "out": "1", "lengths": "[3]", "plain": "5"}
    checked = parameters.check(notebook(), given)
    assert checked == {"budget": 1.0, "draws": 7, "quick": True, "out": "1", "lengths": [3], "plain": 5}
    assert isinstance(checked["budget"], float)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("budget", "much"), ("budget", ""), ("budget", True), ("draws", "1.5"), ("draws", 1.5), ("draws", "ten"),
        ("quick", "maybe"), ("quick", 2), ("lengths", "3"), ("lengths", "[1"), ("lengths", "open('x')"), ("out", 3),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_named_with_the_type(notebook, name, value):
    with pytest.raises(
        InputError,
        match=f"parameter {name} takes a value of type .*, not {value!r}".replace("(", r"\(")
        .replace("[", r"\[")
        .replace(")", r"\)"),
    ):
        parameters.check(notebook(), {name: value})


def test_an_unknown_parameter_lists_the_known_ones(notebook, capsys):
    assert main(["run", str(notebook()), "--set", "bugdet=0.5"]) == 2
    message = capsys.readouterr().err
    assert "no parameter 'bugdet' (did you mean budget?)" in message
    assert "draws (int, requests); quick (bool, the small size)" in message
    assert message.count("\n") == 1


HARD = """\
query = "a=b"  # str: what is asked, as name=value
page: str | None = None  # str | None: where from; None: from anywhere
depth = 3  # None|int: levels
name: str = 'x == y # no comment'  # which
pair = (
    1,  # the first
    2,
)  # tuple: both"""


def test_defaults_with_an_equals_sign_and_types_with_none_are_read(notebook):
    found = parameters.parameters(notebook(declared=HARD))
    assert [(one.name, one.type, one.default, one.help) for one in found.values()] == [
        ("query", "str", '"a=b"', "what is asked, as name=value"),
        ("page", "str | None", "None", "where from; None: from anywhere"),
        ("depth", "None|int", "3", "levels"),
        ("name", "str", "'x == y # no comment'", "which"),
        ("pair", "tuple", "(1, 2)", "both"),
    ]
    path = notebook(declared=HARD)
    assert parameters.check(path, {"page": "None", "depth": "4"}) == {"page": None, "depth": 4}
    assert parameters.check(path, {"page": "there", "depth": "None"}) == {"page": "there", "depth": None}
    with pytest.raises(InputError, match=r"depth takes a value of type None\|int, not 'deep'"):
        parameters.check(path, {"depth": "deep"})


@pytest.mark.slow
def test_a_notebook_with_such_parameters_runs_without_a_warning(notebook, tmp_path, capfd):
    executed = run.run(notebook("print(query, page, depth)", declared=HARD), tmp_path / "out", query="c=d", page=None)
    assert outputs(executed) == "c=d None 3\n"
    assert re.fullmatch(r"try: started\ntry: done in \d+ s\n", capfd.readouterr().err)


def test_a_parameters_cell_that_is_no_python_is_one_line(notebook, capsys):
    assert main(["run", str(notebook(declared="x = = 1"))]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_common_parameters_are_left_out_where_a_notebook_has_none(notebook, capsys):
    given = {"draws": "3", "nowhere": "1", "source": "tables"}
    assert parameters.common(notebook(), given) == {"draws": "3"}
    assert main(["run", str(notebook()), "--common", "draws=many", "nowhere=1"]) == 2
    assert "parameter draws takes a value of type int" in capsys.readouterr().err
    assert main(["run", str(notebook()), "--common", "nowhere"]) == 2
    assert capsys.readouterr().err == "--common takes name=value, not 'nowhere'\n"


def test_a_setting_without_a_value_is_refused(notebook, capsys):
    assert main(["run", str(notebook()), "--set", "budget"]) == 2
    assert capsys.readouterr().err == "--set takes name=value, not 'budget'\n"


def test_an_unknown_notebook_lists_the_known_ones(capsys):
    assert main(["run", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("no notebook 'nowhere'; notebooks/ has: ")


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\x01"])
def test_a_file_that_is_no_notebook_is_named(tmp_path, capsys, content):
    path = tmp_path / "broken.ipynb"
    path.write_text(content)
    assert main(["run", str(path), "--out", str(tmp_path)]) == 1
    assert "broken.ipynb is not a readable notebook" in capsys.readouterr().err


def test_params_lists_them_as_the_notebook_does(notebook, capsys):
    assert main(["run", str(notebook()), "--params"]) == 0
    assert "draws = 10  # int: requests" in capsys.readouterr().out
