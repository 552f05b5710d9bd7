"""Measurements: what is read back is checked, and what is on the disk is not lost to a failed run."""

import pytest

from disco_core.artifact import measure
from disco_core.errors import ArtifactError, InputError

GOOD = "prompt_tokens,repeat,token,generated_s\n8,0,0,0.1\n8,0,1,0.2\n16,0,0,0.2\n16,0,1,0.3\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "No columns"),
        ("a,b\n1,2\n", "no column prompt_tokens"),
        (GOOD.splitlines()[0] + "\n", "empty"),
        (GOOD.replace("0.3", "slow"), "generated_s"),
        (GOOD.replace("0.3", "-1"), "-1"),
        (GOOD.replace("0.3", ""), "nan"),
        (GOOD.replace("16,", "8,"), "two prompt lengths"),
        ("\x00\xff" * 40, "device.csv"),
    ],
)
def test_a_file_without_measurements_is_named(tmp_path, content, told):
    path = tmp_path / "device.csv"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ArtifactError, match=told) as error:
        measure.device_measurements(path)
    assert "device.csv" in str(error.value)


def test_measurements_are_read_back(tmp_path):
    path = tmp_path / "device.csv"
    path.write_text(GOOD)
    found, rows = measure.device_measurements(path)
    assert (found, len(rows)) == (path, 4)
    for bad in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(ArtifactError, match="does not hold"):
            measure.device_measurements(bad)


def test_a_failed_run_leaves_the_earlier_measurements(tmp_path, monkeypatch, capsys):
    path = tmp_path / "device.csv"
    path.write_text(GOOD)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure_device", interrupted)
    assert measure.main(["--out", str(path)]) == 130
    assert path.read_text() == GOOD
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("bad", [{"repeats": 0}, {"decode_tokens": -1}, {"lengths": [0]}, {"lengths": []}])
def test_bad_sizes_are_named(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        measure.measure_device(**bad)


def test_a_prompt_beyond_the_context_is_refused():
    with pytest.raises(InputError, match="context"):
        measure.measure_device([10**6])
