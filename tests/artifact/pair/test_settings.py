"""The settings of a pair: each wrong value is one line that names it, before anything is sent."""

import pytest

from artifact.data.model import smollm2_path
from artifact.pair import settings
from disco_core.cost import Constraint
from disco_core.errors import DiscoError
from disco_core.latency import DeviceProfile

SERVER = {"SERVER": "http://127.0.0.1:8000/v1"}


def test_values_become_what_they_stand_for(tmp_path):
    path = tmp_path / "a file.csv"
    path.write_text("prompt\nWhy?\n")
    given = SERVER | {"PRICE_IN": "0.15", "PRICE_OUT": "0.6", "WATT_HOURS": "2", "DEVICE": "79.9,21.47,0.2"}
    found = settings.read(given | {"PROMPTS": path, "RATE": "2", "ARRIVALS": "azure-conv", "CONSTRAINT": "Server"})
    assert found.server == SERVER["SERVER"]
    assert (found.prices.server_in, found.prices.server_out, found.prices.watt_hours) == (0.15, 0.6, 2.0)
    assert found.device == DeviceProfile(79.9, 21.47, 0.2)
    assert (found.prompts, found.rate, found.arrivals) == (path, 2.0, "azure-conv")
    assert found.constraint is Constraint.SERVER
    assert (found.requests, found.minutes, found.tokens, found.live) == (100, 2.0, 32, 0)


def test_without_values_there_are_defaults_and_what_belongs_to_make_is_left_out():
    found = settings.read(
        SERVER | {"MODEL": "", "TRACE": None, "PYTHON": "python3.12", "TRACES": "tables", "ARGS": ""}
    )
    assert (found.model, found.trace, found.prices, found.yes) == (None, None, None, False)
    assert found.device == smollm2_path()
    assert found.asks_server


def test_a_record_needs_no_server_unless_it_is_asked_live(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("")
    assert not settings.read({"TRACE": str(path)} | SERVER).asks_server
    assert settings.read({"TRACE": str(path), "LIVE": "3"} | SERVER).asks_server


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "nothing to study"),
        ({"SERVR": "x"}, "no setting 'SERVR'; near it are: SERVER"),
        ({"COLOUR": "x"}, "no setting 'COLOUR'; there are: SERVER"),
        (SERVER | {"PRICE_IN": "1"}, "PRICE_IN needs PRICE_OUT"),
        (SERVER | {"WATT_HOURS": "1"}, "WATT_HOURS needs PRICE_IN and PRICE_OUT"),
        (SERVER | {"PRICE_IN": "cheap", "PRICE_OUT": "1"}, "PRICE_IN must be a number, got 'cheap'"),
        (SERVER | {"PRICE_IN": "-1", "PRICE_OUT": "1"}, "PRICE_IN must be finite and at least 0, got -1"),
        (SERVER | {"PRICE_IN": "1", "PRICE_OUT": "nan"}, "PRICE_OUT must be finite"),
        (SERVER | {"REQUESTS": "many"}, "REQUESTS must be a whole number of at least 1, got 'many'"),
        (SERVER | {"REQUESTS": "9"}, "REQUESTS must be at least 10, got 9"),
        (SERVER | {"REQUESTS": "10.5"}, "REQUESTS must be a whole number"),
        (SERVER | {"RATE": "0"}, "RATE must be finite and above 0"),
        (SERVER | {"MINUTES": "-2"}, "MINUTES must be finite and above 0"),
        (SERVER | {"MINUTES": "inf"}, "MINUTES must be finite"),
        (SERVER | {"TOKENS": "1"}, "TOKENS must be at least 2"),
        (SERVER | {"LIVE": "-1"}, "LIVE, if it is not 0, must be a whole number"),
        (SERVER | {"ARRIVALS": "poisson", "RATE": "1"}, "no arrival pattern 'poisson'"),
        (SERVER | {"ARRIVALS": "azure-conv"}, "ARRIVALS needs RATE"),
        (SERVER | {"CONSTRAINT": "both"}, "CONSTRAINT must be device or server, got 'both'"),
        (SERVER | {"DEVICE": "80"}, "PREFILL,DECODE"),
        (SERVER | {"DEVICE": "80,-2"}, "DEVICE: its numbers must be finite"),
        (SERVER | {"DEVICE": "80,0"}, "DEVICE: decode_rate must be finite and above 0"),
        (SERVER | {"DEVICE": "absent.gguf"}, "DEVICE: model_path must be a GGUF file"),
        (SERVER | {"DEVICE": __file__}, "DEVICE: model_path must be a GGUF file"),
        (SERVER | {"TRACE": "absent.csv"}, "absent.csv: there is no such file"),
        (SERVER | {"PROMPTS": "absent.csv"}, "absent.csv: there is no such file"),
        (SERVER | {"PART": "x"}, "PART says what to read of TRACE"),
        (SERVER | {"LIVE": "5", "DEVICE": "80,20"}, "LIVE needs a DEVICE that can answer"),
        (SERVER | {"NAME": "../x"}, "NAME must have letters"),
        (SERVER | {"OUT": "."}, "OUT must be a folder of its own"),
        (SERVER | {"YES": "maybe"}, "YES must be 1 or 0"),
        ({"SERVER": "127.0.0.1:8000/v1"}, "SERVER: url must be http://host"),
        ({"SERVER": "http://sk-secret@host/v1"}, "SERVER: url must be http://host"),
    ],
)
def test_a_wrong_value_is_one_line(given, words):
    with pytest.raises(DiscoError) as told:
        settings.read(given)
    assert words in str(told.value)
    assert "\n" not in str(told.value)
    assert "sk-secret" not in str(told.value)
