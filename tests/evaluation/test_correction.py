"""What is shown of an energy at the end of its training: texts with it off and on, and the bound that it lowers."""

import builders
import pytest
import torch
from builders import tiny_denoiser
from tensordict.nn import TensorDictModule

from edlm import contracts
from edlm.data import vocabulary
from edlm.evaluation import correction as _correction
from edlm.likelihood import estimates
from edlm.process import schedules
from edlm.samplers import corrections, pipelines
from edlm.samplers.sampler import Sampler

ABCD = vocabulary.characters("abcd")
OFF = builders.ancestral(schedules.log_linear(), tiny_denoiser())
MORE_A = TensorDictModule(
    lambda candidates: -10.0 * (candidates == 0).sum(-1).double(),
    in_keys=[contracts.CANDIDATES],
    out_keys=[contracts.ENERGY],
)
ON = builders.importance(schedules.log_linear(), tiny_denoiser(), MORE_A, 16)


def drawn(kernel: Sampler, window: tuple[float, float]) -> list[str]:
    tokens = pipelines.sample(builders.sampling(kernel, 8, 3, window), 4, seed=5)["tokens"]
    return ABCD.decode(tokens)


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.9, 1.0)])
def test_texts_are_those_of_both_kernels_in_the_window_at_the_seed(window: tuple[float, float]) -> None:
    wanted = {"num_samples": 4, "num_steps": 3, "num_particles": 16, "window": list(window), "seed": 5}
    records = _correction.texts(OFF.denoiser, ON.correction, wanted, ABCD)
    assert [(record["row"], record["energy"]) for record in records] == [
        (row, name) for row in range(4) for name in ("off", "on")
    ]
    assert {record["seed"] for record in records} == {5}
    assert [record["text"] for record in records[0::2]] == drawn(OFF, window)
    assert [record["text"] for record in records[1::2]] == drawn(ON, window)
    assert drawn(OFF, window) != drawn(ON, window) != drawn(ON, (0.0, 0.5)), "else nothing is told apart"
    assert torch.is_grad_enabled()


def test_the_bound_is_that_of_the_samplers_steps_and_particles_text_by_text() -> None:
    """Five draws of three texts in batches of two, at the run's own seed: what a text is beside others changes nothing.

    Token 3 is padding, and a text counts by its tokens.
    """
    texts = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1], [2, 0, 0, 1, 0, 3, 3, 3], [1, 0, 3, 3, 3, 3, 3, 3]])
    samples = {"num_samples": 1, "num_steps": 3, "num_particles": 4, "window": [0.5, 1.0], "seed": 5}
    settings = {"samples": samples, "seed": 7, "valid_rows": 5, "batch_size": 2, "report_particles": 2}
    denoiser, schedule = tiny_denoiser(), schedules.log_linear()
    correction = corrections.OfEnergy(MORE_A, "transition")
    found = _correction.transition_bounds(denoiser, correction, texts, settings, pad_id=3)
    per_text: dict[str, list[float]] = {"plain_bound": [], "bound": [], "gain": []}
    x_0 = texts[torch.tensor([0, 1, 2, 0, 1])]
    for row in torch.arange(5).split(1):
        text = x_0[row]
        keys = (schedule, schedules.uniform_grid(3), text, torch.tensor(7), row)
        bound, plain = (
            float(builders.transition_bound(denoiser, MORE_A, *keys, num_particles=k, scored=text != 3).nats)
            for k in (4, 1)
        )
        for name, nats in (("plain_bound", plain), ("bound", bound), ("gain", plain - bound)):
            per_text[name].append(nats)
    for name, values in per_text.items():
        expected = estimates.estimate(torch.tensor(values), (x_0 != 3).sum(1))
        assert found[name]._asdict() == pytest.approx(expected._asdict(), rel=1e-5), name
    assert abs(found["gain"].mean) > 0.1, "else its sign is not seen"
