"""Numbers that the published MDLM / EDLM code computed, and what a comparison with them needs.

They are small networks with their tokens, uniforms, activations, losses and gradients, looked for in the folder
`goldens` of `$EDLM_SHARED`, or of a folder `shared` beside the repository, and every test that needs them is skipped
where there are none. `a` has its mask at the end of the vocabulary, `b` in the middle, and odd sizes.
"""

import copy
import json
import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from tensordict import TensorDict
from torch import Tensor, nn

from edlm import contracts
from edlm.objectives import denoising
from edlm.process import absorbing, schedules, training_times
from edlm.process.schedules import Schedule
from edlm.weights import published

FOLDER = Path(os.environ.get("EDLM_SHARED", Path(__file__).parents[2] / "shared")) / "goldens"
F64, F32 = torch.float64, torch.float32
TIME_LOW = 1e-3
STEPS = 1000
SCHEDULES = {
    "loglinear": schedules.log_linear(1e-3),
    "cosine": schedules.cosine(1e-3),
    "cosinesqr": schedules.cosine_squared(1e-3),
    "linear": schedules.linear(1e-3, 7.0),
    "linear_default": schedules.linear(0.0, 10.0),
    "geometric": schedules.geometric(1e-4, 20.0),
    "geometric_int": schedules.geometric(1e-3, 1.0),
}
LOG_LINEAR = SCHEDULES["loglinear"]

cases = pytest.mark.parametrize("case", ["a", "b"])
dtypes = pytest.mark.parametrize("dtype", [F64, F32], ids=["f64", "f32"])


class Golden(NamedTuple):
    """One file of numbers and what it says about them."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def mask_id(self) -> int:
        return self.config["mask_index"]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def at(self, name: str, dtype: torch.dtype) -> Tensor:
        """The number in the given precision; column vectors as (b,)."""
        value = self.tensors[name + ("_f64" if dtype == F64 else "")]
        return value.squeeze(1) if value.ndim == 2 and value.shape[1] == 1 else value

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    def network(self, prefix: str, dtype: torch.dtype = F64) -> Any:
        state, model = self.part(prefix), self.config["model"]
        return loader(state)(state, model["heads"], model["length"]).to(dtype)


def loader(state: dict[str, Tensor]) -> Any:
    """What a published state dict is loaded by, told by a name that only this kind has."""
    if "energy_head.0.weight" in state:
        return published.load_energy
    return published.load_denoiser if "sigma_map.mlp.0.weight" in state else published.load_autoregressive


@cache
def golden(name: str) -> Golden:
    file = FOLDER / f"share_{name}.safetensors"
    if not file.is_file():
        pytest.skip(f"no published numbers: {file} is not there (set EDLM_SHARED)")
    return Golden(json.loads(file.with_suffix(".json").read_text("utf-8")), load_file(file))


def close(actual: Tensor, expected: Tensor, relative: float) -> None:
    """Compare with an error relative to the largest expected number, and at least to 1."""
    assert actual.shape == expected.shape
    scale = max(1.0, float(expected.abs().max()))
    error = float((actual.detach().double() - expected.double()).abs().max())
    assert error <= relative * scale, f"off by {error:.3g} at a scale of {scale:.3g}"


def logits_tolerance(dtype: torch.dtype) -> float:
    return 1e-11 if dtype == F64 else 1e-5


def told_tolerance(dtype: torch.dtype) -> float:
    """Where a noise level is told: the frequencies of its sinusoids are float32, their last digit the machine's own."""
    return 1e-7 if dtype == F64 else logits_tolerance(dtype)


def loss_tolerance(dtype: torch.dtype) -> float:
    return 1e-6 if dtype == F64 else 1e-5


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """A network's gradients under their published names."""
    twin = copy.deepcopy(network)
    for parameter, original in zip(twin.parameters(), network.parameters(), strict=True):
        parameter.data = original.grad if original.grad is not None else torch.zeros_like(original)
    return published.export(twin)


def gradients_agree(network: nn.Module, expected: dict[str, Tensor], relative: float = 1e-5) -> None:
    """Every parameter's gradient, relative to the largest one of all: the published ones are float32."""
    ours = gradients(network)
    assert expected.keys() == ours.keys() - {"rotary_emb.inv_freq"}
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert float((ours[name] - gradient).abs().max()) <= relative * scale, name


def smallest_time(schedule: Schedule) -> float:
    """The time of sigma = 1e-3, where the published change of variables starts."""
    return max(1e-12, float(schedule.inverse(torch.tensor(-1e-3, dtype=F64).exp())))


def by_sigma(sigma: Tensor) -> Schedule:
    """A schedule that has the given noise level in each row, whatever the time."""
    return Schedule(lambda t: (-sigma).exp() + 0.0 * t, torch.zeros_like, torch.ones_like)


def masked_rows(numbers: Golden, x: Tensor) -> Tensor:
    return (x == numbers.mask_id).flatten().nonzero().squeeze(-1)


class Batch(NamedTuple):
    """A corrupted batch from a file's uniforms: times as the network is told, tokens, what counts."""

    t: Tensor
    x_0: Tensor
    x_t: Tensor
    valid: Tensor

    @property
    def row(self) -> Tensor:
        return torch.arange(len(self.t))


def batch_of(numbers: Golden, schedule: Schedule, t_step: bool = False, t: Tensor | None = None) -> Batch:
    """Times from `u_t` (strata unless given), masks from `u_move`; T-step times are one of the grid's T."""
    u, x_0 = numbers["u_t"].double(), numbers["x0"]
    if t is None:
        t = training_times.stratified_times(u, torch.arange(len(u)), len(u), TIME_LOW)
    if t_step:
        t = ((t * STEPS).int() + 1).double() / STEPS
    x_t = absorbing.corrupt(x_0, schedule.alpha(t), numbers["u_move"].double(), numbers.mask_id)
    return Batch(t, x_0, x_t, numbers["attention_mask"].bool())


def log_probabilities(denoiser: Any, batch: Batch) -> Tensor:
    """The data's log-probability through the stages that training runs, (b, l)."""
    state = TensorDict(
        {
            contracts.X_0: batch.x_0,
            contracts.X_T: batch.x_t,
            contracts.T: batch.t,
            contracts.POSITIONS: (batch.x_t == denoiser.mask_id).flatten().nonzero().squeeze(-1),
        }
    )
    return denoising.score(denoiser)(denoiser(state))[contracts.LOG_PROB]


def mean_loss(rows: Tensor, batch: Batch) -> Tensor:
    """The published mean: per token that is no padding."""
    return rows.sum() / batch.valid.sum()


def ends_of_step(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha at the start and at the end of the step that starts at t."""
    return schedule.alpha(t), schedule.alpha((t - 1 / STEPS).clamp(min=0.0))
