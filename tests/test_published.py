"""Agreement with numbers that the published MDLM / EDLM code computed, and exactly where we differ on purpose.

The numbers are small networks with their tokens, uniforms, activations, losses and gradients. They are looked for in
the folder `goldens` of `$EDLM_SHARED`, or of a folder `shared` beside the repository, and every test that needs them
is skipped where there are none. `a` has its mask at the end of the vocabulary, `b` in the middle, and odd sizes.
"""

import copy
import json
import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from builders import masked_positions
from safetensors.torch import load_file
from tensordict import TensorDict
from torch import Tensor, nn

import edlm
from edlm import absorbing, categorical, contracts, energies, objectives, particles, published, schedules
from edlm.networks import Transformer
from edlm.schedules import Schedule

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


# ---- Weights


@cases
@pytest.mark.parametrize(("file", "prefix"), [("dit", "sd."), ("ar", "sd."), ("ebm_bi", "ebm."), ("ebm_ar", "ar.")])
def test_published_weights_survive_the_round_trip(case, file, prefix):
    numbers = golden(f"{file}_{case}")
    state = numbers.part(prefix)
    back = published.export(loader(state)(state, numbers.config["model"]["heads"]))
    assert back.keys() == state.keys() | {"rotary_emb.inv_freq"}
    assert all(torch.equal(back[name], value) for name, value in state.items())


# ---- Schedules and times


@dtypes
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name, dtype):
    # The published float64 numbers hold float32 constants.
    numbers, schedule = golden("noise"), SCHEDULES[name]
    t = numbers.at("t", dtype)
    sigma, expected = schedules.sigma(schedule, t), numbers.at(f"{name}.sigma", dtype)
    slope, expected_slope = -schedule.alpha_slope(t) / schedule.alpha(t), numbers.at(f"{name}.dsigma", dtype).to(dtype)
    # float32: sigma goes through alpha here, which rounds to 6e-8 where sigma is small.
    assert torch.allclose(sigma, expected, rtol=2e-7 if dtype == F64 else 1e-6, atol=0.0 if dtype == F64 else 1.2e-7)
    visible = schedule.alpha(t) > 1e-6  # below it float32 leaves nothing of the quotient
    assert torch.allclose(slope[visible], expected_slope[visible], rtol=2e-7 if dtype == F64 else 1e-6, atol=0.0)


def test_the_published_code_has_no_polynomial_schedule_and_ours_is_exact_at_both_ends():
    assert golden("noise").config["status"]["polynomial"].startswith("FAILS")
    ends = torch.tensor([0.0, 1.0], dtype=F64)
    assert schedules.polynomial(2.0).alpha(ends).tolist() == [1.0, 0.0]
    # Published: sigma ends at -log(1e-3). Ours without eps ends with no token left.
    assert schedules.sigma(schedules.log_linear(), ends).tolist() == [0.0, float("inf")]
    assert golden("noise")["loglinear.sigma_f64"][-1] == pytest.approx(6.9077, abs=1e-4)


def smallest_time(schedule: Schedule) -> float:
    """The time of sigma = 1e-3, where the published change of variables starts."""
    return max(1e-12, float(schedule.inverse(torch.tensor(-1e-3, dtype=F64).exp())))


@pytest.mark.parametrize("name", ["loglinear", "linear"])
def test_importance_sampled_times(name):
    numbers, schedule = golden("noise"), SCHEDULES[name]
    times = schedules.importance_times(numbers["t_f64"], schedule, smallest_time(schedule))
    # The ends of the published transform are float32 numbers: log(1 - exp(-1e-3)) keeps five digits.
    assert torch.allclose(times, numbers[f"{name}.is_transform_f64"], rtol=2e-5, atol=1e-6)


def test_importance_sampled_times_are_finite_where_the_published_ones_are_not():
    numbers, schedule = golden("noise"), SCHEDULES["linear_default"]  # sigma_min = 0
    assert not numbers["linear_default.is_transform_f64"].isfinite().all()
    times = schedules.importance_times(numbers["t_f64"], schedule, low=1e-3)
    assert times.isfinite().all()
    assert torch.allclose(times[[0, -1]], torch.tensor([1e-3, 1.0], dtype=F64))


@pytest.mark.parametrize("n", [1, 5, 8])
@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("antithetic", [False, True])
def test_training_times(n, importance, antithetic):
    numbers = golden("sample_t")
    u, row = numbers[f"n{n}.u"].double(), torch.arange(n)
    # Without strata every row is a batch of its own.
    t = schedules.stratified_times(u, row if antithetic else 0 * row, n if antithetic else 1, TIME_LOW)
    if importance:
        t = schedules.importance_times(t, LOG_LINEAR, smallest_time(LOG_LINEAR))
    expected = numbers[f"n{n}.t_anti{int(antithetic)}_imp{int(importance)}_f64"]
    # i / n is float32 in the published code, and so are the ends of its transform.
    assert torch.allclose(t, expected, rtol=1e-5 if importance else 0.0, atol=5e-8)


# ---- The denoiser's network


@cases
@dtypes
def test_denoiser_logits(case, dtype):
    numbers = golden(f"dit_{case}")
    network = numbers.network("sd.", dtype)
    x, sigma = numbers["x"], numbers["sigma"].to(dtype)
    with torch.no_grad():
        conditioned, alone = network.head(network(x, sigma)), network.head(network(x))
        zero = network.head(network(x, torch.zeros_like(sigma)))
    close(conditioned, numbers.at("logits", dtype), logits_tolerance(dtype))
    close(alone, numbers.at("logits_sigma0", dtype), logits_tolerance(dtype))
    close(zero, numbers.at("logits_sigma0", dtype), logits_tolerance(dtype))


@cases
def test_denoiser_blocks(case):
    numbers = golden(f"dit_{case}")
    network = numbers.network("sd.")
    seen = {}
    for i, block in enumerate(network.trunk.blocks):
        block.register_forward_hook(lambda _module, _input, output, i=i: seen.setdefault(i, output))
    with torch.no_grad():
        network(numbers["x"], numbers["sigma"].double())
    for i in range(len(network.trunk.blocks)):
        close(seen[i], numbers[f"act.block{i}_f64"], 1e-8)


def by_sigma(sigma: Tensor) -> Schedule:
    """A schedule that has the given noise level in each row, whatever the time."""
    return Schedule(lambda t: (-sigma).exp() + 0.0 * t, torch.zeros_like, torch.ones_like)


def masked_rows(numbers: Golden, x: Tensor) -> Tensor:
    return (x == numbers.mask_id).flatten().nonzero().squeeze(-1)


@cases
@dtypes
@pytest.mark.parametrize("conditioned", [True, False])
def test_subs_log_probabilities_at_masked_positions(case, dtype, conditioned):
    numbers = golden(f"dit_{case}")
    x, positions = numbers["x"], masked_rows(numbers, numbers["x"])
    denoiser = edlm.denoisers.subs(numbers.network("sd.", dtype), numbers.mask_id)
    if conditioned:  # built by hand: sigma is given per row here and not as a time
        denoiser.module.schedule = by_sigma(numbers["sigma"].to(dtype))
    with torch.no_grad():
        hidden = denoiser(
            TensorDict({contracts.X_T: x, contracts.T: torch.zeros(len(x)), contracts.POSITIONS: positions})
        )[contracts.HIDDEN]
        log_p = denoiser.logits(hidden).log_softmax(-1)
    expected = numbers.at("subs_logp" if conditioned else "subs_logp_tc0", dtype).flatten(0, 1)[positions]
    tokens = torch.arange(log_p.shape[1]) != numbers.mask_id
    close(log_p[:, tokens], expected[:, tokens], logits_tolerance(dtype))
    assert (log_p[:, numbers.mask_id] == -torch.inf).all()  # published: about -1e6
    assert (expected[:, numbers.mask_id] < -1e5).all()


@cases
@dtypes
def test_d3pm_and_sedd_parameterisations(case, dtype):
    numbers = golden(f"dit_{case}")
    network, x = numbers.network("sd.", dtype), numbers["x"]
    positions = masked_rows(numbers, x)
    sigma = numbers["sigma"].to(dtype)
    with torch.no_grad():
        hidden = network(x, sigma).flatten(0, 1)[positions]
        log_p = edlm.denoisers.d3pm(network, numbers.mask_id, LOG_LINEAR).log_prob(hidden)
        alpha = (-sigma).exp().unsqueeze(1).expand(x.shape).flatten()[positions]
        log_score = edlm.denoisers.sedd(network, numbers.mask_id, LOG_LINEAR).log_score(hidden, alpha)
    close(log_p, numbers.at("d3pm_logp", dtype).flatten(0, 1)[positions], logits_tolerance(dtype))
    close(log_score, numbers.at("sedd_logscore", dtype).flatten(0, 1)[positions], logits_tolerance(dtype))


# ---- The autoregressive network


@cases
@dtypes
def test_autoregressive_log_probabilities(case, dtype):
    numbers = golden(f"ar_{case}")
    network, x = numbers.network("sd.", dtype), numbers["x"]
    tokens = torch.arange(network.head.out_features) != numbers.mask_id
    with torch.no_grad():
        log_p = network.head(network(x))[..., tokens].log_softmax(-1)
        ours = energies.ar_log_prob(network, x, numbers.mask_id, bos_id=None)
    close(log_p, numbers.at("logp", dtype)[..., tokens], logits_tolerance(dtype))
    assert (ours[:, 0] == 0).all()  # the first token is given
    valid = numbers["attention_mask"][:, 1:]
    close(-ours[:, 1:] * valid, numbers.at("nlls", dtype), loss_tolerance(dtype))


@cases
def test_autoregressive_loss_and_gradients(case):
    numbers = golden(f"ar_{case}")
    network = numbers.network("sd.")
    log_prob = energies.ar_log_prob(network, numbers["x"], numbers.mask_id, bos_id=None) * numbers["attention_mask"]
    loss = objectives.next_token(log_prob).sum() / numbers["token_mask"].sum()
    loss.backward()
    close(loss, numbers["loss_f64"], 1e-6)
    gradients_agree(network, numbers.part("grad."))


@cases
def test_autoregressive_samples_are_what_the_log_probabilities_say(case):
    numbers = golden(f"ar_{case}")
    network, tokens = numbers.network("sd."), numbers["sample_tokens"]
    with torch.no_grad():
        logits = network.head(network(tokens[:, :-1]))
    logits[..., numbers.mask_id] = -torch.inf
    assert (tokens[:, 0] == numbers.config["bos"]).all()
    assert torch.equal((logits.log_softmax(-1) + numbers["sample_gumbel"]).argmax(-1), tokens[:, 1:])


# ---- Losses of the denoiser


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
        t = schedules.stratified_times(u, torch.arange(len(u)), len(u), TIME_LOW)
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
    return edlm.training.score(denoiser)(denoiser(state))[contracts.LOG_PROB]


def mean_loss(rows: Tensor, batch: Batch) -> Tensor:
    """The published mean: per token that is no padding."""
    return rows.sum() / batch.valid.sum()


CONTINUOUS = {
    "subs": ("loglinear", False),
    "subs_tc": ("loglinear", True),
    "subs_linear": ("linear", True),
    "subs_cosine": ("cosine", True),
    "subs_noantithetic": ("loglinear", False),
}


@cases
@dtypes
@pytest.mark.parametrize("variant", CONTINUOUS)
def test_continuous_loss(case, variant, dtype):
    numbers, weights = golden(f"loss_{case}"), golden(f"dit_{case}")
    schedule, conditioned = SCHEDULES[CONTINUOUS[variant][0]], CONTINUOUS[variant][1]
    u = numbers["u_t"].double()
    t = TIME_LOW + (1 - TIME_LOW) * u if variant == "subs_noantithetic" else None
    batch = batch_of(numbers, schedule, t=t)
    assert torch.equal(batch.x_t, numbers[f"{variant}.xt"])
    network = weights.network("sd.", dtype)
    denoiser = edlm.denoisers.subs(network, numbers.mask_id, schedule if conditioned else None)
    with torch.no_grad():
        log_prob = log_probabilities(denoiser, batch)
    weight = schedules.nelbo_weight(schedule, batch.t)
    expected = numbers.at(f"{variant}.token_loss", dtype)
    close(objectives.nelbo(log_prob, weight), expected.sum(1), loss_tolerance(dtype))
    loss = mean_loss(objectives.nelbo(log_prob * batch.valid, weight), batch)
    close(loss, numbers.at(f"{variant}.loss", dtype), loss_tolerance(dtype))


@cases
def test_continuous_loss_gradients(case):
    numbers, weights = golden(f"loss_{case}"), golden(f"dit_{case}")
    network = weights.network("sd.")
    batch = batch_of(numbers, LOG_LINEAR)
    log_prob = log_probabilities(edlm.denoisers.subs(network, numbers.mask_id), batch) * batch.valid
    mean_loss(objectives.nelbo(log_prob, schedules.nelbo_weight(LOG_LINEAR, batch.t)), batch).backward()
    gradients_agree(network, numbers.part("subs.grad."))


class ToldTime(nn.Module):
    """A network that is told the number it is given for sigma, as the published change of variables tells it u."""

    def __init__(self, network: Transformer, told: Tensor) -> None:
        super().__init__()
        self.network, self.told, self.head, self.max_length = network, told, network.head, network.max_length

    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        return self.network(tokens, self.told, positions)


@cases
@pytest.mark.parametrize("variant", ["subs_is", "subs_cov", "subs_cov_tc"])
def test_importance_sampled_loss(case, variant):
    # Change of variables is the same law of 1 - alpha; it tells a time-conditioned network u where sigma belongs.
    numbers, weights = golden(f"loss_{case}"), golden(f"dit_{case}")
    low = smallest_time(LOG_LINEAR)
    u = batch_of(numbers, LOG_LINEAR).t
    t = schedules.importance_times(u, LOG_LINEAR, low)
    batch = batch_of(numbers, LOG_LINEAR, t=t)
    assert torch.equal(batch.x_t, numbers[f"{variant}.xt"])
    network = weights.network("sd.")
    told = ToldTime(network, u) if variant == "subs_cov_tc" else network
    with torch.no_grad():
        log_prob = log_probabilities(edlm.denoisers.subs(told, numbers.mask_id), batch)
    weight = schedules.importance_weight(LOG_LINEAR, t, low)
    # The published weight lacks `log(1 - alpha(1))`, the upper end of the integral; its other end is float32.
    missing = -(1 - LOG_LINEAR.alpha(torch.ones((), dtype=F64))).log()
    assert 0 < missing / weight[0] < 2e-4
    close(objectives.nelbo(log_prob, weight + missing), numbers[f"{variant}.token_loss_f64"].sum(1), 2e-6)
    loss = mean_loss(objectives.nelbo(log_prob * batch.valid, weight + missing), batch)
    close(loss, numbers[f"{variant}.loss_f64"], 2e-6)


def ends_of_step(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha at the start and at the end of the step that starts at t."""
    return schedule.alpha(t), schedule.alpha((t - 1 / STEPS).clamp(min=0.0))


@cases
@dtypes
def test_t_step_loss(case, dtype):
    numbers, weights = golden(f"loss_{case}"), golden(f"dit_{case}")
    batch = batch_of(numbers, LOG_LINEAR, t_step=True)
    assert torch.equal(batch.x_t, numbers["subs_T1000.xt"])
    with torch.no_grad():
        log_prob = log_probabilities(edlm.denoisers.subs(weights.network("sd.", dtype), numbers.mask_id), batch)
    alphas, expected = ends_of_step(LOG_LINEAR, batch.t), numbers.at("subs_T1000.token_loss", dtype)
    close(objectives.t_step(log_prob, *alphas, STEPS), expected.sum(1), loss_tolerance(dtype))
    loss = mean_loss(objectives.t_step(log_prob * batch.valid, *alphas, STEPS), batch)
    close(loss, numbers.at("subs_T1000.loss", dtype), loss_tolerance(dtype))


def d3pm_loss(network: nn.Module, batch: Batch, mask_id: int, weigh: Schedule, told: Schedule | None) -> Tensor:
    """The D3PM loss as published, per position (b, l): KL of a step, and the reconstruction of the clean text."""

    def log_probs(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        denoiser = edlm.denoisers.d3pm(network, mask_id, told)
        everywhere = {contracts.X_T: x, contracts.T: t, contracts.POSITIONS: torch.arange(x.numel())}
        log_p = denoiser.log_prob(denoiser(TensorDict(everywhere))[contracts.HIDDEN]).view(*x.shape, -1)
        return log_p.gather(-1, batch.x_0.unsqueeze(-1)).squeeze(-1), log_p[..., mask_id]

    alphas = [alpha.unsqueeze(1).expand(batch.x_0.shape).flatten() for alpha in ends_of_step(weigh, batch.t)]
    log_p, log_p_mask = log_probs(batch.x_t, batch.t)
    masked = batch.x_t == mask_id
    flat = [value.flatten().unsqueeze(1) for value in (log_p, log_p_mask, masked)]
    step = objectives.d3pm(*flat, *alphas, STEPS).view_as(log_p)
    return step - log_probs(batch.x_0, torch.zeros_like(batch.t))[0]


@cases
@pytest.mark.parametrize("variant", ["d3pm_T1000", "d3pm_T1000_tc"])
def test_d3pm_loss(case, variant):
    numbers, weights = golden(f"loss_{case}"), golden(f"dit_{case}")
    batch = batch_of(numbers, LOG_LINEAR, t_step=True)
    network, told = weights.network("sd."), LOG_LINEAR if variant.endswith("tc") else None
    # Published: masks are drawn with alpha = 1 - 0.999 t, the step is weighed with alpha = 1 - t.
    tokens = d3pm_loss(network, batch, numbers.mask_id, schedules.log_linear(), told)
    close(tokens, numbers[f"{variant}.token_loss_f64"], 1e-6)
    loss = (tokens * batch.valid).sum() / batch.valid.sum()
    close(loss, numbers[f"{variant}.loss_f64"], 1e-6)
    if variant == "d3pm_T1000":
        loss.backward()
        gradients_agree(network, numbers.part("d3pm_T1000.grad."))


@cases
def test_d3pm_with_one_schedule_differs_a_little_from_the_published_two(case):
    numbers, weights = golden(f"loss_{case}"), golden(f"dit_{case}")
    batch, network = batch_of(numbers, LOG_LINEAR, t_step=True), weights.network("sd.")
    with torch.no_grad():
        one = d3pm_loss(network, batch, numbers.mask_id, LOG_LINEAR, None).sum()
    relative = float(one / numbers["d3pm_T1000.token_loss_f64"].sum() - 1)
    assert 1e-7 < abs(relative) < 1e-3


@cases
def test_d3pm_that_cannot_predict_the_mask_is_the_t_step_loss_and_a_reconstruction(case):
    numbers, weights = golden(f"loss_{case}"), golden(f"dit_{case}")
    batch, network = batch_of(numbers, LOG_LINEAR, t_step=True), weights.network("sd.")
    denoiser = edlm.denoisers.subs(network, numbers.mask_id)
    with torch.no_grad():
        step = objectives.t_step(log_probabilities(denoiser, batch), *ends_of_step(LOG_LINEAR, batch.t), STEPS)
        clean = categorical.token_log_prob(
            denoiser.logits(network(batch.x_0).flatten(0, 1)), batch.x_0.flatten().unsqueeze(1)
        ).view_as(batch.x_0)
    close(step - clean.sum(1), numbers["d3pm_T1000_subsmask.token_loss_f64"].sum(1), 1e-6)


@cases
@dtypes
@pytest.mark.parametrize(("variant", "noise"), [("sedd", "loglinear"), ("sedd_geometric", "geometric")])
def test_score_entropy(case, variant, noise, dtype):
    numbers, weights = golden(f"loss_{case}"), golden(f"dit_{case}")
    schedule, network = SCHEDULES[noise], weights.network("sd.", dtype)
    batch = batch_of(numbers, schedule)
    assert torch.equal(batch.x_t, numbers[f"{variant}.xt"])
    positions = masked_rows(numbers, batch.x_t)
    t = batch.t.unsqueeze(1).expand(batch.x_0.shape).flatten()[positions]
    denoiser = edlm.denoisers.sedd(network, numbers.mask_id, schedule)
    state = {contracts.X_T: batch.x_t, contracts.T: batch.t, contracts.POSITIONS: positions}
    hidden = denoiser(TensorDict(state))[contracts.HIDDEN]
    alpha, x_0 = schedule.alpha(t), batch.x_0.flatten()[positions]
    loss = objectives.sedd(denoiser.log_score(hidden, alpha), x_0, alpha, schedule.alpha_slope(t), numbers.mask_id)
    close(loss, numbers.at(f"{variant}.token_loss", dtype).flatten()[positions], loss_tolerance(dtype))
    loss = (loss * batch.valid.flatten()[positions]).sum() / batch.valid.sum()
    close(loss, numbers.at(f"{variant}.loss", dtype), loss_tolerance(dtype))
    if variant == "sedd" and dtype == F64:
        loss.backward()
        gradients_agree(network, numbers.part("sedd.grad."))


# ---- The bidirectional energy


@cases
@dtypes
@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("draft", ["x0", "x0_given"])
def test_energy(case, dtype, conditioned, draft):
    numbers = golden(f"ebm_bi_{case}")
    energy = energies.learned(numbers.network("ebm.", dtype))
    if conditioned:
        energy.module.schedule = by_sigma(numbers["sigma"].to(dtype))
    state = {
        contracts.CANDIDATES: numbers[draft].unsqueeze(1),
        contracts.X_T: numbers["xt"],
        contracts.T: torch.zeros(len(numbers["xt"])),
    }
    with torch.no_grad():
        ours = energy(TensorDict(state))[contracts.ENERGY].squeeze(1)
    expected = numbers.at(f"energy_tc{int(conditioned)}_{draft.removeprefix('x0_')}", dtype)
    close(ours, expected, logits_tolerance(dtype))


@cases
def test_energy_reads_x_t_first(case):
    numbers = golden(f"ebm_bi_{case}")
    network, x_t, x_0 = numbers.network("ebm."), numbers["xt"], numbers["x0"]
    with torch.no_grad():
        swapped = network(x_0, x_t)
    assert ((swapped - numbers.at("energy_tc0_x0", F64)).abs() > 1e-3).any()


def constant_in_the_logarithm(energy_positive: Tensor, energy_negative: Tensor) -> Tensor:
    """By how much `log(sigmoid(x) + 1e-8)` lowers the loss, at most: 1e-8 / sigmoid(x) for each of the two terms."""
    return 1e-8 * ((1 + energy_positive.exp()) + (1 + (-energy_negative).exp()))


@cases
def test_nce_loss_and_gradients(case):
    numbers = golden(f"ebm_bi_{case}")
    network = numbers.network("ebm.")
    batch = batch_of(numbers, LOG_LINEAR)
    assert torch.equal(batch.x_t, numbers["nce.xt"])
    pair = torch.stack([batch.x_0, numbers["nce.x0_neg"]], dim=1)
    state = {contracts.CANDIDATES: pair, contracts.X_T: batch.x_t, contracts.T: batch.t}
    positive, negative = energies.learned(network)(TensorDict(state))[contracts.ENERGY].unbind(1)
    close(positive, numbers.at("nce.energy_pos", F64), 1e-8)
    close(negative, numbers.at("nce.energy_neg", F64), 1e-8)
    rows = objectives.nce(positive, negative.unsqueeze(1))
    gap = rows - numbers["nce.nlls_f64"].amax(1)  # one number per row, repeated where there is no padding
    assert (gap > -1e-12).all()
    assert (gap <= constant_in_the_logarithm(positive, negative) + 1e-12).all()
    loss = (rows.unsqueeze(1) * batch.valid).sum() / batch.valid.sum()
    close(loss, numbers["nce.loss_f64"], 1e-5)
    loss.backward()
    gradients_agree(network, numbers.part("nce.grad."))


@cases
@pytest.mark.parametrize("t_step", [False, True])
def test_validation_of_the_energy(case, t_step):
    """Weight times `-log p_theta + E + log Z`, published with log Z from one draft and padding inside E."""
    numbers, name = golden(f"ebm_bi_{case}"), "val_T1000" if t_step else "val_T0"
    batch = batch_of(numbers, LOG_LINEAR, t_step)
    assert torch.equal(batch.x_t, numbers[f"{name}.xt"])
    with torch.no_grad():
        log_prob = log_probabilities(edlm.denoisers.subs(numbers.network("den."), numbers.mask_id), batch)
        network = numbers.network("ebm.")
        energy, of_draft = network(batch.x_t, batch.x_0), network(batch.x_t, numbers[f"{name}.x0_neg"])
    close(energy, numbers.at(f"{name}.energy_pos", F64), 1e-8)
    log_z = particles.log_mean_weight(particles.log_weights(of_draft.unsqueeze(1)))
    weight = schedules.nelbo_weight(LOG_LINEAR, batch.t)
    if t_step:  # T times the step's reveal probability is 1 / t on the log-linear schedule, as is the weight
        alpha_t, alpha_s = ends_of_step(LOG_LINEAR, batch.t)
        weight = STEPS * (alpha_s - alpha_t) / (1 - alpha_t)
    share = batch.valid.double().mean(1)  # padding takes its part of E + log Z out of the published number
    rows = objectives.nelbo(log_prob * batch.valid, weight) + weight * share * (energy + log_z)
    close(rows, numbers[f"{name}.nlls_f64"].sum(1), 1e-6)
    close(mean_loss(rows, batch), numbers[f"{name}.loss_f64"], 1e-6)
    whole = batch.valid.all(1)
    close(
        (objectives.nelbo(log_prob, weight) + weight * (energy + log_z))[whole],
        numbers[f"{name}.nlls_f64"].sum(1)[whole],
        1e-6,
    )


# ---- The autoregressive energy


class ArEnergy(NamedTuple):
    """Our energy of some drafts, and what the published one adds: log p_theta of position 0 where it is masked."""

    ours: Tensor
    stray: Tensor


def ar_energy(numbers: Golden, ar: nn.Module, x_t: Tensor, draft: Tensor, carry_over: bool) -> ArEnergy:
    denoiser = edlm.denoisers.subs(numbers.network("den."), numbers.mask_id)
    batch = Batch(torch.ones(len(x_t), dtype=F64), draft, x_t, torch.ones_like(x_t).bool())
    with torch.no_grad():
        log_p = log_probabilities(denoiser, batch)
    energy = energies.residual_ar(ar, numbers.mask_id, bos_id=None, carry_over=carry_over)
    state = {
        contracts.CANDIDATES: draft.unsqueeze(1),
        contracts.X_T: x_t,
        contracts.POSITIONS: masked_positions(x_t, numbers.mask_id),
        contracts.LOG_P_CANDIDATES: log_p.unsqueeze(1),
    }
    return ArEnergy(energy(TensorDict(state))[contracts.ENERGY].squeeze(1), log_p[:, 0])


@cases
@dtypes
@pytest.mark.parametrize("carry_over", [False, True])
@pytest.mark.parametrize("draft", ["x0", "x0_given"])
def test_autoregressive_energy(case, dtype, carry_over, draft):
    """Published: AR part from position 1, denoiser part from 0. Ours: both from 1 when the first token is given."""
    numbers = golden(f"ebm_ar_{case}")
    with torch.no_grad():
        energy = ar_energy(numbers, numbers.network("ar.", dtype), numbers["xt"], numbers[draft], carry_over)
    name = f"co{int(carry_over)}_{draft.removeprefix('x0_')}"
    close(energy.ours + energy.stray, numbers.at(f"energy_{name}", dtype), logits_tolerance(dtype))
    masked_at_0 = numbers["xt"][:, 0] == numbers.mask_id
    assert (energy.stray[masked_at_0] < -0.1).all()
    assert (energy.stray[~masked_at_0] == 0).all()
    assert masked_at_0.any()


def published_nce(positive: Tensor, negative: Tensor) -> Tensor:
    return -((torch.sigmoid(-positive) + 1e-8).log() + (torch.sigmoid(negative) + 1e-8).log())


@cases
@pytest.mark.parametrize("carry_over", [False, True])
def test_nce_of_the_autoregressive_energy(case, carry_over):
    numbers, name = golden(f"ebm_ar_{case}"), f"nce_co{int(carry_over)}"
    ar, batch = numbers.network("ar."), batch_of(numbers, LOG_LINEAR)
    assert torch.equal(batch.x_t, numbers[f"{name}.xt"])
    positive, negative = (
        sum(ar_energy(numbers, ar, batch.x_t, draft, carry_over)) for draft in (batch.x_0, numbers[f"{name}.x0_neg"])
    )
    close(positive, numbers.at(f"{name}.energy_pos", F64), 1e-8)
    close(negative, numbers.at(f"{name}.energy_neg", F64), 1e-8)
    expected = numbers[f"{name}.nlls_f64"].amax(1)
    close(published_nce(positive, negative), expected, 1e-8)
    gap = objectives.nce(positive, negative.unsqueeze(1)) - expected
    assert (gap > -1e-9).all()
    assert (gap <= constant_in_the_logarithm(positive, negative) + 1e-9).all()
    if carry_over:
        rows = published_nce(positive, negative).unsqueeze(1) * batch.valid
        (rows.sum() / batch.valid.sum()).backward()
        gradients_agree(ar, numbers.part(f"{name}.grad."))


@cases
def test_the_published_nce_is_flat_where_ours_still_teaches(case):
    numbers = golden(f"ebm_ar_{case}")
    energy = numbers.at("nce_co0.energy_pos", F64).clone().requires_grad_()
    far = energy.detach() > 18.5
    assert far.any()
    loss = objectives.nce(energy, torch.full((len(energy), 1), 100.0, dtype=F64))
    (slope,) = torch.autograd.grad(loss.sum(), energy)
    (flat,) = torch.autograd.grad(published_nce(energy, torch.full_like(energy, 100.0)).sum(), energy)
    assert (slope[far] > 0.999).all()
    assert (flat[far] < 0.5).all()
    assert (numbers["nce_co0.nlls_f64"] <= 18.43 * 2).all()


@cases
@pytest.mark.parametrize("carry_over", [False, True])
@pytest.mark.parametrize("t_step", [False, True])
def test_validation_of_the_autoregressive_energy(case, carry_over, t_step):
    """Published without log Z, and free of charge for position 0, whose stray term takes its own cost away."""
    numbers, name = golden(f"ebm_ar_{case}"), f"val_T{STEPS if t_step else 0}_co{int(carry_over)}"
    batch = batch_of(numbers, LOG_LINEAR, t_step)
    assert torch.equal(batch.x_t, numbers[f"{name}.xt"])
    with torch.no_grad():
        ar = numbers.network("ar.")
        log_prob = log_probabilities(edlm.denoisers.subs(numbers.network("den."), numbers.mask_id), batch)
        energy, stray = ar_energy(numbers, ar, batch.x_t, batch.x_0, carry_over)
        log_ar = energies.ar_log_prob(ar, batch.x_0, numbers.mask_id, bos_id=None)
    weight = schedules.nelbo_weight(LOG_LINEAR, batch.t)
    share = batch.valid.double().mean(1)
    rows = objectives.nelbo(log_prob * batch.valid, weight) + weight * share * (energy + stray)
    close(rows, numbers[f"{name}.nlls_f64"].sum(1), 1e-6)
    close(mean_loss(rows, batch), numbers[f"{name}.loss_f64"], 1e-6)
    # By identity the sum is the AR model's own cost, of all positions or of the masked ones, position 0 left out.
    counted = (batch.x_t == numbers.mask_id) if carry_over else torch.ones_like(batch.x_t).bool()
    whole = batch.valid.all(1)
    cost = -weight * torch.where(counted, log_ar, 0.0).sum(1)
    close(cost[whole], numbers[f"{name}.nlls_f64"].sum(1)[whole], 1e-6)


# ---- Reverse steps


@cases
@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("update", ["cache", "ddpm"])
def test_a_plain_step_has_the_published_weights(case, conditioned, update):
    """`p(x_0) (alpha_s - alpha_t)` for a token, `1 - alpha_s` for the mask: SUBS and the reveal plan imply both."""
    numbers, weights = golden(f"ddpm_{case}"), golden(f"dit_{case}")
    x, t = numbers["x"], numbers["t"].double().squeeze(1)
    s, positions = t - numbers["dt"], masked_rows(numbers, x)
    denoiser = edlm.denoisers.subs(weights.network("sd."), numbers.mask_id, LOG_LINEAR if conditioned else None)
    with torch.no_grad():
        state = {contracts.X_T: x, contracts.T: t, contracts.POSITIONS: positions}
        p_x_0 = denoiser.logits(denoiser(TensorDict(state))[contracts.HIDDEN]).softmax(-1)
    alpha_t, alpha_s = LOG_LINEAR.alpha(t), LOG_LINEAR.alpha(s)
    of_row = (positions // x.shape[1]).long()
    expected = numbers[f"{update}_tc{int(conditioned)}.q_xs_f64"].flatten(0, 1)[positions]
    ours = p_x_0 * (alpha_s - alpha_t)[of_row].unsqueeze(1)
    ours[:, numbers.mask_id] = (1 - alpha_s)[of_row]
    close(ours / ours.sum(1, keepdim=True), expected / expected.sum(1, keepdim=True), 1e-11)
    for row in of_row.unique().tolist():
        stay = expected[of_row == row][0, numbers.mask_id] / expected[of_row == row][0].sum()
        assert revealed_share(float(t[row]), float(s[row])) == pytest.approx(1 - float(stay), abs=2e-4)


def revealed_share(t: float, s: float) -> float:
    """Of the positions that are masked at t, the share that the reveal plan reveals until s."""
    count = 20_000
    uniforms = (torch.arange(count, dtype=F64).unsqueeze(0) + 0.5) / count
    plan = absorbing.reveal_plan(
        uniforms, torch.ones_like(uniforms).bool(), LOG_LINEAR, torch.tensor([1.0, t, s, 0.0], dtype=F64)
    )
    return float((plan.order == 1).sum() / (plan.order >= 1).sum())
