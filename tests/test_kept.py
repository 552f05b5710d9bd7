"""What is kept of measurements: what is read back is checked, and what is on the disk survives a failed run."""

import pytest

from artifact.errors import ArtifactError
from artifact.measure import device as measure
from artifact.measure import overhead

DEVICE = "prompt_tokens,repeat,token,generated_s\n8,0,0,0.1\n8,0,1,0.2\n16,0,0,0.2\n16,0,1,0.3\n"
OVERHEAD = """work,by,n,repeat,unit,value
build F,disco-core,100000,0,s,0.004
build F,disco-core,100000,0,bytes,1600000
"""
READ = {DEVICE: measure.device_measurements, OVERHEAD: overhead.overhead_measurements}


@pytest.mark.parametrize(
    ("good", "changed", "told"),
    [
        *((good, lambda _: "", "No columns") for good in READ),
        *((good, lambda _: "a,b\n1,2\n", f"no column {good.split(',')[0]}") for good in READ),
        *((good, lambda text: text.splitlines()[0] + "\n", "empty") for good in READ),
        *((good, lambda _: "\x00\xff" * 40, "kept.csv") for good in READ),
        (DEVICE, lambda text: text.replace("0.3", "slow"), "generated_s"),
        (DEVICE, lambda text: text.replace("0.3", "-1"), "-1"),
        (DEVICE, lambda text: text.replace("0.3", ""), "nan"),
        (DEVICE, lambda text: text.replace("16,", "8,"), "two prompt lengths"),
        (OVERHEAD, lambda text: text.replace("0.004", "quick"), "value"),
        (OVERHEAD, lambda text: text.replace("0.004", "-1"), "-1"),
        (OVERHEAD, lambda text: text.replace("0.004", ""), "nan"),
        (OVERHEAD, lambda text: text.replace(",bytes,", ",s,"), "times and memory"),
        (OVERHEAD, lambda text: text.replace("100000", "1000"), "100000 samples"),
    ],
)
def test_a_file_without_measurements_is_named(tmp_path, good, changed, told):
    path = tmp_path / "kept.csv"
    path.write_text(changed(good), encoding="latin-1")
    with pytest.raises(ArtifactError, match=told) as error:
        READ[good](path)
    assert "kept.csv" in str(error.value)


@pytest.mark.parametrize("good", READ)
def test_measurements_are_read_back(tmp_path, good):
    path = tmp_path / "kept.csv"
    path.write_text(good)
    found, rows = READ[good](path)
    assert (found, len(rows)) == (path, len(good.splitlines()) - 1)
    for bad in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(ArtifactError, match="does not hold"):
            READ[good](bad)


@pytest.mark.parametrize(
    ("module", "makes", "good"),
    [(measure, "measure_device", DEVICE), (overhead, "measure_overhead", OVERHEAD)],
)
def test_a_failed_run_leaves_the_earlier_measurements(tmp_path, monkeypatch, capsys, module, makes, good):
    path = tmp_path / "kept.csv"
    path.write_text(good)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, makes, interrupted)
    assert module.main(["--out", str(path)]) == 130
    assert path.read_text() == good
    assert "interrupted" in capsys.readouterr().err
