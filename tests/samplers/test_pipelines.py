"""The loop that samples: prompts, what it reports, what it costs and what it refuses."""

import math

import builders
import pytest
import torch
from builders import tiny_denoiser, tiny_energy, tiny_network
from hypothesis import example, given, settings
from hypothesis import strategies as st
from specifications import Spec, filled_up, prompts, specs
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import edlm
from edlm import contracts, samplers
from edlm.process import schedules
from edlm.samplers import plans

quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**63 - 1)
MASK = 3  # of the default Spec


# ---- Prompts


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param([0, 1], id="prefix"),
        pytest.param([MASK, MASK, 2, 0], id="suffix"),
        pytest.param([1, MASK, MASK, 2], id="infilling"),
        pytest.param([[0, 1, 2], [2, MASK, 0], [MASK, MASK, MASK]], id="one per row"),
        pytest.param([], id="empty"),
        pytest.param([[], [], []], id="empty rows"),
        pytest.param([0, 1, 2, 0], id="complete"),
    ],
)
@pytest.mark.parametrize("selection", [None, "sir"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_a_prompt_is_kept_and_the_rest_is_filled(prompt: list, selection: str | None, dtype: torch.dtype):
    spec, asked = Spec(selection=selection), torch.tensor(prompt, dtype=dtype)
    before = asked.clone()
    tokens = edlm.sample(spec.pipeline(), 3, prompt=asked)["tokens"]
    start = filled_up(asked.long(), spec, 3)
    assert torch.equal(tokens[start != MASK], start[start != MASK])
    assert (tokens != MASK).all()
    assert (tokens.dtype, tokens.shape) == (torch.int64, (3, 4))
    assert torch.equal(asked, before)
    assert asked.dtype == dtype


def test_an_empty_prompt_is_no_prompt():
    pipeline = Spec().pipeline()
    free = edlm.sample(pipeline, 5)["tokens"]
    for prompt in (torch.tensor([]), torch.full((4,), MASK), torch.full((5, 2), MASK)):
        assert torch.equal(edlm.sample(pipeline, 5, prompt=prompt)["tokens"], free)


def test_a_prompt_for_all_rows_is_a_prompt_for_each():
    pipeline, prompt = Spec().pipeline(), torch.tensor([MASK, 1])
    one, each = (edlm.sample(pipeline, 5, prompt=p)["tokens"] for p in (prompt, prompt.expand(5, 2)))
    assert torch.equal(one, each)


def test_a_complete_prompt_takes_no_pass():
    prompt = torch.tensor([[0, 1, 2, 0], [2, 2, 2, 1]])
    out = edlm.sample(Spec().pipeline(), 2, prompt=prompt, callback=lambda *_: pytest.fail("there is nothing to do"))
    assert torch.equal(out["tokens"], prompt)
    assert out["info", "denoiser_passes"].tolist() == out["info", "energy_passes"].tolist() == [0, 0]
    assert all(out["info", key].shape == (2, 0) for key in ("t", "corrected", contracts.ESS, contracts.LOG_WEIGHT_STD))


# ---- A function of its arguments


@pytest.mark.parametrize("selection", [None, "sir", "imh"])
def test_the_seed_fixes_the_sample_and_the_global_state_does_not_matter(selection: str | None):
    pipeline = Spec(selection=selection, length=6).pipeline()
    torch.manual_seed(0)
    first = edlm.sample(pipeline, 4, seed=11)
    state = torch.get_rng_state()
    torch.rand(100)
    again = edlm.sample(pipeline, 4, seed=11)
    torch.testing.assert_close(dict(first.flatten_keys().items()), dict(again.flatten_keys().items()), equal_nan=True)
    torch.manual_seed(0)
    edlm.sample(pipeline, 4, seed=12)
    assert torch.equal(torch.get_rng_state(), state)  # no number was drawn from it


@pytest.mark.parametrize("num_steps", [1, 3, 6, None])
def test_rows_are_the_same_at_any_batch_size(num_steps: int | None):
    pipeline = Spec(num_steps=num_steps, length=6, window=(0.3, 0.9)).pipeline()
    tokens = edlm.sample(pipeline, 64, seed=1)["tokens"]
    for b in (1, 2, 7, 33):
        assert torch.equal(edlm.sample(pipeline, b, seed=1)["tokens"], tokens[:b])


def test_no_gradient_is_kept_and_networks_stay_as_they_are():
    denoiser, energy = tiny_denoiser(), tiny_energy()
    before = [p.clone() for p in (*denoiser.parameters(), *energy.parameters())]
    kernel = builders.importance(schedules.log_linear(), denoiser, energy, num_particles=2)
    edlm.sample(builders.sampling(kernel, 6, 3), 2)
    after = [*denoiser.parameters(), *energy.parameters()]
    assert all(torch.equal(p, q) and q.grad is None for p, q in zip(before, after, strict=True))
    assert torch.is_grad_enabled()


# ---- What it reports


@quick
@given(st.data(), specs(), st.integers(1, 4), seeds)
@example(None, Spec(num_steps=None, length=6, window=(0.3, 0.8)), 4, 0)
@example(None, Spec(num_steps=8, length=6), 4, 0)  # rows that finish at different passes
def test_info_counts_passes_and_times(data: st.DataObject | None, spec: Spec, b: int, seed: int):
    prompt = data.draw(prompts(spec, b)) if data else None
    masks = (filled_up(prompt, spec, b) == spec.mask_id).sum(1)
    info = edlm.sample(spec.pipeline(), b, seed=seed, prompt=prompt)["info"]
    passes, t, corrected = info["denoiser_passes"], info["t"], info["corrected"]
    if spec.num_steps is None:
        assert torch.equal(passes, -(-masks // spec.tokens_per_pass))
    else:
        assert (passes <= masks.clamp(max=spec.num_steps)).all()
    assert torch.equal(passes == 0, masks == 0)
    assert t.shape == (b, int(passes.max()))
    running = torch.arange(t.shape[1]) < passes.unsqueeze(1)
    assert (t[~running] == 0).all()
    falls = t[:, 1:] < t[:, :-1] if spec.num_steps else t[:, 1:] <= t[:, :-1]
    assert falls[running[:, 1:]].all()
    if spec.num_steps:
        assert torch.isin(t[running], schedules.uniform_grid(spec.num_steps)[:-1]).all()
    inside = (spec.window[0] <= t) & (t <= spec.window[1]) & running
    assert torch.equal(corrected, inside & (spec.selection is not None))
    assert torch.equal(info["energy_passes"], corrected.sum(1) * spec.num_particles)
    assert (t.dtype, passes.dtype, corrected.dtype) == (torch.float64, torch.float64, torch.bool)


@quick
@given(specs(), st.integers(1, 4), seeds)
def test_diagnostics_lie_in_their_ranges_where_the_energy_was_used_and_are_nan_elsewhere(spec: Spec, b: int, seed: int):
    info = edlm.sample(spec.pipeline(), b, seed=seed)["info"]
    ess, std, corrected = info[contracts.ESS], info[contracts.LOG_WEIGHT_STD], info["corrected"]
    assert torch.equal(ess.isnan(), ~corrected)
    assert torch.equal(std.isnan(), ~corrected)
    assert ((ess[corrected] > 1 - 1e-9) & (ess[corrected] < spec.num_particles + 1e-9)).all()
    assert (std[corrected] >= 0).all()
    if spec.num_particles == 1:
        assert (ess[corrected] == 1).all()
        assert (std[corrected] == 0).all()
    assert ess.dtype == std.dtype == torch.float64


def test_a_finished_row_costs_no_energy():
    prompt = torch.tensor([[0, 1, 2, 0], [0, 1, 2, MASK], [MASK, MASK, MASK, MASK]])
    info = edlm.sample(Spec(num_steps=None).pipeline(), 3, prompt=prompt)["info"]
    assert info["denoiser_passes"].tolist() == [0, 1, 4]
    assert info["energy_passes"].tolist() == [0, 3, 12]
    assert info["corrected"].sum(1).tolist() == [0, 1, 4]


@pytest.mark.parametrize("num_steps", [3, None])
def test_networks_are_told_the_time_at_which_each_row_s_pass_starts(num_steps: int | None):
    told: dict[str, list[Tensor]] = {"denoiser": [], "energy": []}
    spec = Spec(num_steps=num_steps, length=6)
    kernel = spec.kernel()
    denoiser = kernel.denoiser
    denoiser.register_forward_pre_hook(lambda _, inputs: told["denoiser"].append(inputs[0][contracts.T]))
    energy = TensorDictModule(
        lambda candidates, t: (told["energy"].append(t), candidates.sum(-1).double())[1],
        in_keys=[contracts.CANDIDATES, contracts.T],
        out_keys=[contracts.ENERGY],
    )
    kernel = samplers.kernel_of(builders.importance(spec.schedule, denoiser, energy, num_particles=2))
    info = edlm.sample(spec.pipeline()._replace(kernel=kernel), 5)["info"]
    assert (info["t"].diff() < 0).any(1).all()
    for times in told.values():
        for p, at_pass in enumerate(times):
            running = info["t"][info["denoiser_passes"] > p, p]
            assert torch.equal(at_pass.sort().values, running.sort().values)


@given(st.integers(0, 1000), st.sampled_from([None, "sir"]))
def test_a_finished_row_is_worked_on_no_more(seed: int, selection: str | None):
    rows: list[int] = []
    pipeline = Spec(selection=selection, length=6, num_steps=8).pipeline()
    pipeline.kernel.denoiser.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0][contracts.X_T])))
    info = edlm.sample(pipeline, 6, seed=seed)["info"]
    assert rows == [int((info["denoiser_passes"] > p).sum()) for p in range(len(rows))]
    assert sum(rows) == info["denoiser_passes"].sum()


def test_a_callback_sees_the_rows_in_their_own_order():
    states: list[Tensor] = []
    prompt = torch.full((5, 6), 3)
    for row, given_tokens in enumerate([5, 2, 6, 0, 3]):  # rows of 1, 4, 0, 6 and 3 passes
        prompt[row, :given_tokens] = row % 3
    pipeline = Spec(length=6, num_steps=None).pipeline()
    out = edlm.sample(pipeline, 5, prompt=prompt, callback=lambda state, _: states.append(state[contracts.X_T]))
    assert out["info", "denoiser_passes"].tolist() == [1, 4, 0, 6, 3]
    for p, state in enumerate(states):
        assert torch.equal(state[prompt != 3], prompt[prompt != 3])
        assert (state == 3).sum(1).tolist() == [max(0, masks - p - 1) for masks in (1, 4, 0, 6, 3)]
    assert torch.equal(states[-1], out["tokens"])


def test_diagnostics_are_those_of_the_weights():
    """Energies 0 and log 3 weigh 3/4 and 1/4: ESS is 1.6, and the two log-weights lie log 3 apart."""
    energy = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)
    info = edlm.sample(Spec(num_particles=2, num_steps=1).pipeline(energy=lambda *_: energy), 1)["info"]
    assert info[contracts.ESS].item() == pytest.approx(1.6)
    assert info[contracts.LOG_WEIGHT_STD].item() == pytest.approx(math.log(3.0) / math.sqrt(2.0))


def test_the_callback_sees_every_pass_once():
    seen: list[tuple[TensorDict, TensorDict]] = []
    spec = Spec(num_steps=None, length=6, window=(0.3, 0.8))
    prompt = torch.tensor([[0, 0, 3, 3, 3, 3], [3, 3, 3, 3, 3, 3]])  # the first row has fewer passes
    out = edlm.sample(spec.pipeline(), 2, prompt=prompt, callback=lambda *arguments: seen.append(arguments))
    assert out["info", "denoiser_passes"].tolist() == [4, 6]
    assert len(seen) == 6
    masks = torch.stack([(state[contracts.X_T] == MASK).sum(1) for state, _ in seen], dim=1)
    assert masks.tolist() == [[3, 2, 1, 0, 0, 0], [5, 4, 3, 2, 1, 0]]
    for p, (_, info) in enumerate(seen):
        assert torch.equal(info[contracts.ESS].isnan(), ~out["info", "corrected"][:, p])
        torch.testing.assert_close(info[contracts.ESS], out["info", contracts.ESS][:, p], equal_nan=True)
    assert torch.equal(seen[-1][0][contracts.X_T], out["tokens"])


def test_samples_stack_as_tensordicts():
    out = edlm.sample(Spec().pipeline(), 5)
    assert out.batch_size == out["info"].batch_size == (5,)
    assert set(out.keys()) == {"tokens", "info"}
    assert out[2:4]["tokens"].shape == (2, 4)


def test_a_window_includes_the_times_of_the_grid_at_its_ends():
    """`linspace` rounds 0.56 down and 0.3 up: the steps that start there would fall out of (0.56, 1) and (0, 0.3)."""
    for num_steps, window, expected in ((100, (0.56, 1.0), 45), (10, (0.0, 0.3), 3)):
        info = edlm.sample(Spec(length=6, num_steps=num_steps, window=window).pipeline(), 512)["info"]
        used = info["t"][info["corrected"]].unique()
        assert len(used) == expected


# ---- Work


class _Calls(TorchDispatchMode):
    """Names of the operations that make the host wait for a device, or would on one."""

    WAITING = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "equal", "item")

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.WAITING:
            self.waiting.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("num_steps", [4, None])
def test_the_loop_reads_nothing_on_the_host(num_steps: int | None):
    kernel = builders.importance(schedules.log_linear(), tiny_denoiser(), tiny_energy(), num_particles=3)
    pipeline, calls, so_far = builders.sampling(kernel, 6, num_steps, window=(0.3, 1.0)), _Calls(), []
    with calls:
        edlm.sample(pipeline, 4, callback=lambda *_: so_far.append(len(calls.waiting)))
    assert so_far[0] > 0  # before the first pass the plan is read, so the spy does see something
    assert so_far[-1] == so_far[0], calls.waiting[so_far[0] :]


class _Counting(nn.Module):
    """How many rows of hidden states went through a head."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head, self.out_features, self.rows = head, head.out_features, []

    def forward(self, hidden: Tensor) -> Tensor:
        self.rows.append(hidden.shape[0])
        return self.head(hidden)


def test_the_vocabulary_head_runs_on_wanted_positions_only():
    network = tiny_network()
    network.head = head = _Counting(network.head)
    denoiser = edlm.denoisers.subs(network, mask_id=4)
    kernel = builders.ancestral(schedules.log_linear(), denoiser)
    edlm.sample(builders.sampling(kernel, 8, 3), 5)
    assert sum(head.rows) == 5 * 8  # every position once, when it is revealed
    head.rows.clear()
    kernel = builders.importance(schedules.log_linear(), denoiser, tiny_energy(), num_particles=7)
    info = edlm.sample(builders.sampling(kernel, 8, None), 5)["info"]
    assert head.rows == [5 * masked for masked in range(8, 0, -1)]  # all masked ones, whatever k is
    assert info["denoiser_passes"].tolist() == [8] * 5


# ---- Mistakes


@pytest.mark.parametrize("num_samples", [0, -1])
def test_no_samples_is_an_error(num_samples: int):
    with pytest.raises(ValueError, match=f"num_samples = {num_samples} must be at least 1"):
        edlm.sample(Spec().pipeline(), num_samples)


@pytest.mark.parametrize("window", [(0.6, 0.4), (-0.1, 1.0), (0.0, 1.1), (math.nan, 1.0)])
def test_a_window_that_is_none_is_an_error(window: tuple[float, float]):
    with pytest.raises(ValueError, match=r"window = .* must satisfy 0 <= low <= high <= 1"):
        Spec(window=window).pipeline()


@pytest.mark.parametrize("length", [0, -3, 9])
def test_a_length_the_denoiser_was_not_built_for_is_an_error(length: int):
    kernel = builders.ancestral(schedules.log_linear(), tiny_denoiser(max_length=8))
    with pytest.raises(ValueError, match=rf"length = {length} must lie in 1\.\.8"):
        builders.sampling(kernel, length)


@pytest.mark.parametrize("num_steps", [0, -1])
@pytest.mark.parametrize("spacing", list(plans.SPACINGS))
def test_no_steps_is_an_error(num_steps: int, spacing: str):
    with pytest.raises(ValueError, match=f"num_steps = {num_steps} must be at least 1"):
        plans.Grid(num_steps, spacing)


def test_no_tokens_in_a_pass_is_an_error():
    with pytest.raises(ValueError, match="tokens_per_pass = 0 must be at least 1"):
        plans.TokensPerPass(0)


@pytest.mark.parametrize(("prompt", "bad"), [([0, 4], 4), ([[-1], [0]], -1), ([[0, 1], [99, 1]], 99)])
def test_a_token_outside_the_vocabulary_is_named(prompt: list, bad: int):
    with pytest.raises(ValueError, match=rf"prompt holds token id {bad}, outside the vocabulary 0\.\.3"):
        edlm.sample(Spec().pipeline(), 2, prompt=torch.tensor(prompt))


@pytest.mark.parametrize("shape", [(5,), (2, 5), (3, 4), (1, 4)])
def test_a_prompt_that_does_not_fit_is_an_error(shape: tuple[int, ...]):
    with pytest.raises(
        ValueError, match=r"prompt of shape .* does not fit: it must be \(l,\) or \(2, l\), l at most 4"
    ):
        edlm.sample(Spec().pipeline(), 2, prompt=torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("noisy", ["denoiser", "energy"])
def test_dropout_left_on_is_an_error(noisy: str):
    denoiser, energy = tiny_denoiser(dropout=0.1), tiny_energy(dropout=0.1)
    kernel = builders.importance(schedules.log_linear(), denoiser, energy, num_particles=2)
    pipeline = builders.sampling(kernel, 4, 2)
    edlm.sample(pipeline)  # the networks are in eval mode
    (denoiser if noisy == "denoiser" else energy).train()
    with pytest.raises(ValueError, match=r"dropout is on at .*: call \.eval\(\)"):
        edlm.sample(pipeline)
    with pytest.raises(ValueError, match="dropout is on"):
        edlm.sample(edlm.accelerate(pipeline, "compile"))


def test_a_network_without_dropout_may_stay_in_train_mode():
    pipeline = builders.sampling(builders.ancestral(schedules.log_linear(), tiny_denoiser().train()), 4, 2)
    assert (edlm.sample(pipeline)["tokens"] != 4).all()
