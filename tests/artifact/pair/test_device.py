"""The device of a pair: its line from real trials, its tokenizer, and files that are no model."""

import asyncio
from contextlib import closing

import numpy as np
import pandas as pd
import pytest

from artifact.data import model
from artifact.errors import ArtifactError
from artifact.pair import device as devices
from artifact.pair.device import Device, open_device
from artifact.pair.progress import Progress
from artifact.pair.prompts import load
from disco_core.endpoints.base import Endpoint, Generation, Token, words
from disco_core.errors import DiscoError
from disco_core.latency import DeviceProfile
from tests.helpers.clock import run

PROMPTS = load(None)


class Modelled(Endpoint):
    """A device with a known line: one token a word, and a chat template of `template` tokens."""

    context = 2048

    def __init__(self, profile, template=10, silent=False):
        self.profile, self.template, self.silent, self.lengths = profile, template, silent, []

    def count(self, prompt):
        return self.template + len(words(prompt).split())

    def apply_chat_template(self, prompt):
        return prompt

    def generate(self, prefix):
        return Generation(self._tokens(prefix))

    async def _tokens(self, prefix):
        n = self.count(prefix.prompt)
        self.lengths.append(n)
        await asyncio.sleep(float(self.profile.ttft(n)))
        for k in range(0 if self.silent else prefix.max_tokens):
            await asyncio.sleep(1 / self.profile.decode_rate if k else 0)
            yield Token(k, " w")


def measured(profile, lengths, limit_s, monkeypatch, **other):
    """The device after its measurement under a virtual clock."""
    endpoint = Modelled(profile, **other)
    device = Device("a model", endpoint.count, endpoint)

    async def go():
        monkeypatch.setattr(devices.time, "monotonic", asyncio.get_running_loop().time)
        await devices.measure(device, PROMPTS, lengths, limit_s, Progress(quiet=True))
        return asyncio.get_running_loop().time()

    return device, run(go())


@pytest.mark.parametrize("lengths", [[14, 30, 60, 110], [25] * 50, [100, 200, 400, 800, 1600]])
def test_a_known_line_is_found(lengths, monkeypatch):
    profile = DeviceProfile(80.0, 20.0, 0.3)
    device, _ = measured(profile, lengths, 1e4, monkeypatch)
    assert device.profile.prefill_rate == pytest.approx(80.0)
    assert device.profile.decode_rate == pytest.approx(20.0)
    assert device.profile.startup == pytest.approx(0.3)
    assert device.notes == []
    counts = device.trials["prompt_tokens"].value_counts()
    assert len(counts) >= 3
    assert (counts == devices.REPEATS).all()
    assert device.trials["prompt_tokens"].tolist() != sorted(device.trials["prompt_tokens"])


@pytest.mark.parametrize("limit_s", [20.0, 40.0, 120.0])
def test_it_keeps_to_its_time_on_a_slow_device(limit_s, monkeypatch):
    device, took_s = measured(DeviceProfile(60.0, 15.0), [200, 900, 1900], limit_s, monkeypatch)
    assert took_s <= 1.3 * limit_s
    assert device.profile.prefill_rate == pytest.approx(60.0)


def test_lengths_that_take_too_long_are_cut_and_said_to_be(monkeypatch):
    device, _ = measured(DeviceProfile(20.0, 10.0), [20, 400, 1900], 40.0, monkeypatch)
    assert device.trials["prompt_tokens"].max() < 400
    assert any(note.startswith("the device was measured with prompts of up to") for note in device.notes)


def test_a_device_that_says_nothing_is_one_line(monkeypatch):
    with pytest.raises(ArtifactError, match="DEVICE: 0 trials had a token in the time there was"):
        measured(DeviceProfile(80.0, 20.0), [20, 40], 40.0, monkeypatch, silent=True)


def test_given_speeds_count_in_smollm2s_template():
    device = open_device(DeviceProfile(80.0, 20.0), PROMPTS, 32)
    assert device.count(PROMPTS[0]) == model.count_tokens(model.build(words(PROMPTS[0])))
    assert device.endpoint is None


@pytest.mark.slow
def test_the_packaged_model_is_measured():
    with closing(open_device(model.smollm2_path(), PROMPTS, 32)) as device:
        asyncio.run(devices.measure(device, PROMPTS, [15, 60, 110], 15.0, Progress(quiet=True)))
    assert device.profile.r_squared > 0.5
    assert device.profile.decode_rate > 1
    assert len(device.trials) >= devices.FEWEST_TRIALS
    assert device.trials["prompt_tokens"].min() < 60 < device.trials["prompt_tokens"].max()


@pytest.mark.slow
def test_a_file_that_begins_like_a_model_is_one_line(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(model.smollm2_path().read_bytes()[:4096])
    with pytest.raises(DiscoError, match="DEVICE: ") as told:
        open_device(path, PROMPTS, 32)
    assert "\n" not in str(told.value)


def test_a_poor_line_is_noted():
    device = Device("x", len)
    rng = np.random.default_rng(0)
    lengths = np.arange(10, 110, 5)
    device.trials = pd.DataFrame({"prompt_tokens": lengths, "ttft_s": lengths / 80 + rng.random(20) * 3})
    devices._fit(device, [0.05])
    device.trials = device.trials.assign(ttft_s=2.0 - lengths / 100)
    falling = devices._fit(device, [0.05])
    assert falling.startup == 0
    assert len(device.notes) == 2
