"""A setting of a frontier: what it expands to, the sampler that draws it, its controls and what it costs."""

import itertools

import builders
import frontier_folder
import pytest
import torch
from builders import tiny_denoiser
from frontier_folder import ABC, LENGTH
from tensordict import TensorDict

from edlm import contracts
from edlm.frontier import draws, grid
from edlm.frontier.draws import Drawing
from edlm.frontier.grid import Setting, expected_passes
from edlm.models import chain_rule, energies
from edlm.models.denoisers import SubsDenoiser
from edlm.process import particles, schedules
from edlm.runs import timing
from edlm.samplers import pipelines
from edlm.samplers.sampler import Sampler
from edlm.weights import named as named_networks
from edlm.weights.named import Models

LINEAR = schedules.log_linear()
FULL = (0.0, 1.0)
SIR = Setting("sir", "learned", 4, 3, FULL, 1.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    frontier_folder.write(folder)
    named = {name: str(folder / name) for name in named_networks.NETWORKS}
    return named_networks.load(named, torch.device("cpu"))


def drawing(n: int = 6) -> Drawing:
    return Drawing(LENGTH, n, 4, 0, torch.device("cpu"))


# ---- Settings


def test_a_sweep_is_the_product_of_its_lists_and_a_setting_is_there_once() -> None:
    plain = {"method": "plain", "num_steps": [2, None], "temperature": [0.5, 1]}
    sir = {
        "method": "sir",
        "energy": ["learned"],
        "num_steps": [4],
        "num_particles": [1, 3],
        "window": [[0, 1], [0.4, 1.0]],
        "temperature": [1.0],
        "controls": ["one_particle", "zero", "flipped"],
    }
    found = grid.expand([plain, sir, plain], LINEAR, LENGTH)
    assert [str(setting) for setting in found] == [
        "plain, T=2, temperature 0.5",
        "plain, T=2",
        "plain, one by one, temperature 0.5",
        "plain, one by one",
        "sir, learned, T=4, k=1",
        "sir, learned, T=4, k=1, t in [0.4, 1]",
        "sir, learned, T=4, k=3",
        "sir, learned, T=4, k=3, t in [0.4, 1]",
        *(
            f"sir, {name}, T=4, k={k}{window}"
            for k in (1, 3)
            for window in ("", ", t in [0.4, 1]")
            for name in ("zero", "flipped learned")
        ),
    ]
    roles = {str(setting): role for setting, role in found.items()}
    assert roles["sir, learned, T=4, k=1"] == "", "it was named by the sweep itself"
    assert roles["sir, flipped learned, T=4, k=3"] == "flipped of sir, learned, T=4, k=3"


@pytest.mark.parametrize("num_steps", [1, 3, 8, None])
@pytest.mark.parametrize("window", [FULL, (0.3, 0.8), (0.0, 0.5)])
@pytest.mark.parametrize("energy", ["learned", "joint", "chain_rule"])
def test_expected_passes_are_the_mean_of_those_that_are_run(
    models: Models, num_steps: int | None, window: tuple[float, float], energy: str
) -> None:
    """Within 4 standard errors of the mean of n texts, each alone where others change its passes; exactly if fixed."""
    setting = SIR._replace(energy=energy, num_steps=num_steps, num_particles=2, window=window)
    together, n = (1, 100) if energy == "joint" and window != FULL else (400, 400)
    _, costs = draws.draw(setting, models, drawing(n)._replace(batch_size=together))
    passes = torch.tensor(costs["passes"], dtype=torch.float64)
    error = float(passes.std()) / n**0.5
    assert abs(float(passes.mean()) - expected_passes(setting, LINEAR, LENGTH)) <= 4 * error + 1e-9
    never_together = num_steps is None and (window == FULL or energy == "chain_rule")
    assert (error == 0.0) == (num_steps == 1 or never_together)


def test_equal_passes_is_the_plain_sampler_at_the_cost_of_denoiser_and_energy() -> None:
    length = 256
    setting = SIR._replace(num_steps=8, num_particles=4)
    control = grid.control("equal_passes", setting, LINEAR, length)
    assert control.family == "plain"
    wanted = expected_passes(setting, LINEAR, length)
    assert wanted == pytest.approx(8 + 8 * 4)
    assert expected_passes(control, LINEAR, length) == pytest.approx(wanted, abs=0.5)
    dear = grid.control("equal_passes", setting._replace(num_particles=64), LINEAR, length)
    assert dear.num_steps is None, "no number of steps costs 520 passes of 256 tokens"


# ---- Controls


def test_one_particle_gives_the_tokens_of_the_plain_sampler_at_the_temperature_of_its_proposals(models) -> None:
    for method in ("sir", "imh"):
        for temperature in (1.0, 0.6):
            setting = SIR._replace(method=method, energy="posterior", temperature=temperature)
            one = grid.control("one_particle", setting, LINEAR, LENGTH)
            tokens, costs = draws.draw(one, models, drawing())
            plain, _ = draws.draw(Setting.plain(4, temperature), models, drawing())
            assert torch.equal(tokens, plain)
            assert costs["ess"] == [1.0] * 6
            more, _ = draws.draw(setting, models, drawing())
            assert not torch.equal(more, plain), "with three particles it is another sampler"


def test_the_zero_energy_weighs_all_drafts_alike_and_costs_no_passes(models: Models) -> None:
    zero = grid.control("zero", SIR, LINEAR, LENGTH)
    _, costs = draws.draw(zero, models, drawing())
    assert costs["ess"] == pytest.approx([3.0] * 6)
    assert costs["log_weight_std"] == [0.0] * 6
    assert costs["energy_passes"] == [0] * 6
    assert costs["passes"] == costs["calls"] == costs["denoiser_passes"]
    _, tempered = draws.draw(zero._replace(temperature=0.6), models, drawing())
    assert max(tempered["ess"]) < 3.0, "its weights make up for the temperature"


def test_the_flipped_energy_is_the_negative_of_its_own(models: Models) -> None:
    flipped = grid.control("flipped", SIR, LINEAR, LENGTH)
    x_t = torch.full((2, LENGTH), ABC.mask_id)
    candidates = torch.randint(0, 4, (2, 3, LENGTH), generator=torch.Generator().manual_seed(0))
    inputs = {contracts.CANDIDATES: candidates, contracts.X_T: x_t, contracts.T: torch.ones(2)}
    own, negative = (
        draws.energy(setting, models)(TensorDict(inputs))[contracts.ENERGY].double() for setting in (SIR, flipped)
    )
    assert torch.equal(own, -negative)
    assert own.abs().min() > 0.0


def test_an_energy_of_transitions_weighs_what_a_step_reveals(models: Models) -> None:
    """Its sampler is that of `transition.of_transitions`; zero and flipped are controls of the same kernel."""
    setting = SIR._replace(energy="transition")
    zero, flipped = (grid.control(name, setting, LINEAR, LENGTH) for name in ("zero", "flipped"))
    assert (zero.energy, flipped.energy) == ("zero transition", "flipped transition")
    assert [each.of_transitions for each in (setting, zero, flipped, SIR)] == [True, True, True, False]
    for each in (setting, zero, flipped):
        assert draws.pipeline(each, models, LENGTH).kernel.proposes == "revealed"
    assert models.diffusion is not None
    parts = (models.diffusion.schedule, models.diffusion.denoiser, models.diffusion.energies["transition"])
    kernel = builders.of_transitions(*parts, 3)
    wanted = pipelines.sample(builders.sampling(kernel, LENGTH, 4), 6, seed=0)
    tokens, costs = draws.draw(setting, models, drawing())
    assert torch.equal(tokens, wanted["tokens"])
    assert costs["energy_passes"] == (3 * wanted["info"]["denoiser_passes"]).tolist()
    drafts, _ = draws.draw(SIR, models, drawing())
    assert not torch.equal(tokens, drafts)


def test_a_joint_network_is_drawn_by_its_own_kernel_and_its_denoiser_is_its_control(models: Models) -> None:
    """Zero, one particle and the plain sampler of its denoiser are one; flipped and the energy differ from them."""
    setting = SIR._replace(energy="joint")
    assert models.joint is not None
    denoiser, schedule = models.joint.denoiser, models.joint.schedule
    assert isinstance(denoiser, SubsDenoiser)
    kernel = builders.two_heads(schedule, denoiser, 3)
    wanted = pipelines.sample(builders.sampling(kernel, LENGTH, 4), 6, seed=0)
    tokens, costs = draws.draw(setting, models, drawing())
    assert torch.equal(tokens, wanted["tokens"])
    assert costs["denoiser_passes"] == [1] * 6
    plain = pipelines.sample(builders.sampling(builders.ancestral(schedule, denoiser), LENGTH, 4), 6, seed=0)
    drawn = {}
    for name in ("one_particle", "zero", "flipped"):
        control = grid.control(name, setting, LINEAR, LENGTH)
        drawn[name], found = draws.draw(control, models, drawing())
        assert found["denoiser_passes"] == [1] * 6
        if name == "zero":
            assert found["ess"] == pytest.approx([3.0] * 6)
    assert torch.equal(drawn["one_particle"], plain["tokens"])
    apart = builders.of_transitions(schedule, denoiser, energies.scaled(models.joint.energies["joint"], -1.0), 3)
    flipped = pipelines.sample(builders.sampling(apart, LENGTH, 4), 6, seed=0)["tokens"]
    assert torch.equal(drawn["flipped"], flipped)
    assert len({str(each.tolist()) for each in (tokens, flipped, plain["tokens"])}) == 3
    control = grid.control("equal_passes", setting._replace(num_steps=8), LINEAR, 256)
    assert expected_passes(control, LINEAR, 256) == pytest.approx(1 + 8 * 3, abs=0.5)


def test_a_denoiser_is_drawn_with_its_own_energy_by_the_kernel_that_reads_new_tokens_alone(models: Models) -> None:
    """A learned denoiser in place of a source's exact one; flipped, the same kernel weighs by the negative."""
    setting = SIR._replace(energy="chain_rule")
    assert models.diffusion is not None
    own, schedule = models.diffusion.denoiser, models.diffusion.schedule
    assert isinstance(own, SubsDenoiser)
    learned = tiny_denoiser(1, ABC.mask_id, vocab_size=ABC.size)
    with torch.no_grad():
        learned.network.trunk.blocks[0].attention.out.weight.mul_(20.0)  # more of what other tokens say
    beside = models._replace(learned=models.diffusion._replace(denoiser=learned))

    def drawn(setting: Setting, models: Models) -> torch.Tensor:
        return draws.draw(setting, models, drawing(40))[0]

    def wanted(kernel: Sampler) -> torch.Tensor:
        return pipelines.sample(builders.sampling(kernel, LENGTH, 4), 40, seed=0)["tokens"]

    flipped, zero = (grid.control(name, setting, LINEAR, LENGTH) for name in ("flipped", "zero"))
    assert (flipped.energy, zero.energy) == ("flipped chain_rule", "zero chain_rule")
    minus = energies.scaled(chain_rule.energy(learned), -1.0)
    better, worse = drawn(setting, beside), drawn(flipped, beside)
    assert torch.equal(better, wanted(builders.in_order(schedule, learned, 3)))
    assert torch.equal(worse, wanted(builders.of_transitions(schedule, learned, minus, 3)))
    assert not torch.equal(better, worse)
    by_imh = wanted(builders.in_order(schedule, learned, 3, selection=particles.imh))
    assert torch.equal(drawn(setting._replace(method="imh"), beside), by_imh)
    one = setting._replace(num_particles=1)
    assert torch.equal(drawn(one, beside), wanted(builders.ancestral(schedule, learned)))
    assert torch.equal(drawn(one, models), wanted(builders.ancestral(schedule, own)))
    assert torch.equal(drawn(setting, models), wanted(builders.in_order(schedule, own, 3)))
    assert torch.equal(drawn(Setting.plain(4), beside), drawn(one, models)), "no other setting is of the learned one"


def test_new_tokens_alone_are_read_by_the_energy_of_the_denoiser(models: Models) -> None:
    """A candidate costs two tokens for each but the first that a step reveals: passes by hand, one text at a time."""
    setting = SIR._replace(energy="chain_rule", window=(0.5, 1.0))
    _, costs = draws.draw(setting, models, drawing())
    pipeline = draws.pipeline(setting, models, LENGTH)
    for row in range(6):
        masks = [LENGTH]

        def seen(state: TensorDict, info: TensorDict, masks: list[int] = masks) -> None:
            masks.append(int((state[contracts.X_T] == ABC.mask_id).sum()))

        corrected = pipelines.sample(pipeline, 1, first_row=row, callback=seen)["info", "corrected"][0].tolist()
        revealed = [before - after for before, after in itertools.pairwise(masks)]
        read = sum(3 * 2 * (new - 1) for new, inside in zip(revealed, corrected, strict=True) if inside)
        assert costs["denoiser_passes"][row] == len(revealed)
        assert costs["energy_passes"][row] == read / LENGTH
        assert costs["passes"][row] == len(revealed) + read / LENGTH
        assert costs["calls"][row] == len(revealed) + sum(corrected)
    assert any(cost % 1 for cost in costs["passes"])
    long = expected_passes(setting._replace(num_steps=8, window=FULL), LINEAR, 256)
    assert long == pytest.approx(8 + 3 * 2 * (256 - 8) / 256), "2 k passes at most, in however many steps"


def test_written_in_order_it_is_of_the_denoiser_with_its_own_energy(models: Models) -> None:
    """A round is a call, and costs two tokens for each but the first that a step reveals."""
    (setting,) = grid.expand(
        [{"method": "speculative", "num_steps": [2], "window": [[0.2, 1.0]], "temperature": [1.3]}], LINEAR, LENGTH
    )
    assert str(setting) == "speculative, chain_rule, T=2, t in [0.2, 1], temperature 1.3"
    assert models.diffusion is not None
    learned = tiny_denoiser(1, ABC.mask_id, vocab_size=ABC.size)
    beside = models._replace(learned=models.diffusion._replace(denoiser=learned))
    tokens, costs = draws.draw(setting, beside, drawing(40))
    kernel = builders.speculative(models.diffusion.schedule, learned, 1.3)
    out = pipelines.sample(builders.sampling(kernel, LENGTH, 2, (0.2, 1.0)), 40, seed=0)
    assert torch.equal(tokens, out["tokens"])
    rounds, revealed = out["info", "rounds"], out["info", "revealed"]
    assert costs["calls"] == (out["info", "denoiser_passes"] + rounds.sum(-1)).tolist()
    assert costs["energy_passes"] == (2.0 * (rounds * (revealed - 1)).sum(-1) / LENGTH).tolist()
    assert len(set(costs["calls"])) > 1
    assert expected_passes(setting._replace(window=FULL), LINEAR, 256) > 2.0


def test_a_pass_is_a_text_that_was_read(models: Models) -> None:
    _, costs = draws.draw(SIR._replace(window=(0.5, 1.0)), models, drawing())
    for denoised, weighed, passes, calls in zip(
        *(costs[name] for name in ("denoiser_passes", "energy_passes", "passes", "calls")), strict=True
    ):
        assert passes == denoised + weighed
        assert weighed == 3 * (calls - denoised) > 0
    _, ar = draws.draw(Setting("ar", None, None, 1, FULL, 1.0), models, drawing(2))
    assert (ar["passes"], ar["calls"]) == ([1, 1], [LENGTH, LENGTH])


def test_a_compiled_setting_has_the_texts_of_the_eager_one_and_is_drawn_once_before_its_clock_starts(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sample = pipelines.sample
    monkeypatch.setattr(torch, "compile", lambda function, **_: calls.append("compiled") or function)
    monkeypatch.setattr(pipelines, "sample", lambda *given, **how: calls.append("batch") or sample(*given, **how))
    monkeypatch.setattr(timing, "seconds", lambda run, device: calls.append("clock") or run() or 1.0)
    for energy in ("transition", "joint", "chain_rule"):
        setting = SIR._replace(energy=energy)
        expected, costs = draws.draw(setting, models, drawing())
        assert calls == ["clock", "batch", "batch"]
        calls.clear()
        tokens, of_fast = draws.draw(setting, models, drawing()._replace(execution="compile"))
        assert torch.equal(tokens, expected)
        assert {**of_fast, "ess": None, "log_weight_std": None} == {**costs, "ess": None, "log_weight_std": None}
        assert [call for call in calls if call != "compiled"] == ["batch", "batch", "clock", "batch", "batch"]
        assert "compiled" in calls[: calls.index("clock")]
        assert "compiled" not in calls[calls.index("clock") :]
        calls.clear()
