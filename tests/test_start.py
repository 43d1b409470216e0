"""The denoiser that an energy's training starts from: trained where it is missing, and frozen."""

from pathlib import Path

import pytest
import torch
from smallest import energy_words, settings_of

from edlm.recipes import _start
from edlm.schedules import Schedule

CPU = torch.device("cpu")


def load(folder: Path, steps: int) -> _start.Start:
    words = [f"pretrain.steps={steps}", "pretrain.decay=constant", "pretrain.schedule.eps=0.01"]
    return _start.load(settings_of("edlm_nce", *energy_words(folder), *words), CPU)


@pytest.mark.slow
def test_it_is_trained_until_it_has_its_steps_and_then_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was stopped too early goes on; one that went further is what it is."""
    said = f"no finished denoiser at {tmp_path / 'denoiser'}: training it first"
    for steps, at, trains in ((2, 2, True), (4, 4, True), (4, 4, False), (3, 4, False)):
        start = load(tmp_path, steps)
        assert start.description["step"] == at
        assert (said in capsys.readouterr().out) == trains
        assert not any(parameter.requires_grad for parameter in start.network.parameters())
    time = torch.tensor(0.5)
    expected: Schedule = _start._settings.build({"_component_": "edlm.schedules.log_linear", "eps": 0.01})
    assert torch.equal(start.schedule.alpha(time), expected.alpha(time))
    assert not torch.equal(start.schedule.alpha(time), 1.0 - time)
