"""What is shown of an energy at the end of its training: texts with it off and on, at the config's rules."""

import pytest
import torch
from builders import tiny_denoiser
from tensordict.nn import TensorDictModule

from edlm import contracts, pipelines, samplers, schedules, vocabulary
from edlm.recipes import _correction

ABCD = vocabulary.characters("abcd")
OFF = samplers.ancestral(schedules.log_linear(), tiny_denoiser())
MORE_A = TensorDictModule(
    lambda candidates: -10.0 * (candidates == 0).sum(-1).double(),
    in_keys=[contracts.CANDIDATES],
    out_keys=[contracts.ENERGY],
)
ON = samplers.importance(schedules.log_linear(), tiny_denoiser(), MORE_A, 16)


def drawn(kernel: samplers.Kernel, window: tuple[float, float]) -> list[str]:
    tokens = pipelines.sample(pipelines.sampling(kernel, 8, 3, window), 4, seed=5)["tokens"]
    return ABCD.decode(tokens)


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.9, 1.0)])
def test_texts_are_those_of_both_kernels_in_the_window_at_the_seed(window: tuple[float, float]) -> None:
    wanted = {"num_samples": 4, "num_steps": 3, "num_particles": 16, "window": list(window), "seed": 5}
    records = _correction.texts(OFF, ON, wanted, ABCD)
    assert [(record["row"], record["energy"]) for record in records] == [
        (row, name) for row in range(4) for name in ("off", "on")
    ]
    assert {record["seed"] for record in records} == {5}
    assert [record["text"] for record in records[0::2]] == drawn(OFF, window)
    assert [record["text"] for record in records[1::2]] == drawn(ON, window)
    assert drawn(OFF, window) != drawn(ON, window) != drawn(ON, (0.0, 0.5)), "else nothing is told apart"
    assert torch.is_grad_enabled()
