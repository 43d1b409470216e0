"""A setting of a frontier: what it expands to, the sampler that draws it, its controls and what it costs."""

import itertools
from typing import Any

import builders
import frontier_folder
import pytest
import torch
from builders import tiny_denoiser
from frontier_folder import ABC, LENGTH
from oracles import OracleDenoiser
from tensordict import TensorDict

from edlm import contracts
from edlm.frontier import controls, draws, grid
from edlm.frontier.draws import Drawing
from edlm.frontier.grid import Alone, Entry
from edlm.models import chain_rule, energies
from edlm.models.denoisers import SubsDenoiser
from edlm.process import particles
from edlm.runs import timing
from edlm.samplers import pipelines
from edlm.samplers.plans import Grid, TokensPerPass
from edlm.samplers.sampler import Proposal, Sampler
from edlm.weights import named as named_networks
from edlm.weights.named import Models

FULL = (0.0, 1.0)
SWEEP = {"correction": {"name": "energy", "called": "learned"}, "plan": {"name": "grid", "num_steps": 4}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    frontier_folder.write(folder)
    named = {name: str(folder / name) for name in named_networks.NETWORKS}
    return named_networks.load(named, torch.device("cpu"))


def drawing(n: int = 6) -> Drawing:
    return Drawing(LENGTH, n, 4, 0, torch.device("cpu"))


def expanded(models: Models, *sweeps: dict[str, Any], length: int = LENGTH) -> dict[str, Entry]:
    return grid.expand(sweeps, grid.sources(models), length)


def sampler(models: Models, correction: str = "learned", **axes: Any) -> Sampler:
    """SIR with three candidates, by an energy or by a correction of this name."""
    named = {"name": "energy", "called": correction} if correction in grid.ENERGIES else {"name": correction}
    ((found, *_),) = expanded(models, {**SWEEP, "candidates": 3, "correction": named, **axes}).values()
    assert isinstance(found, Sampler)
    return found


def control(name: str, of: Sampler, models: Models, length: int = LENGTH) -> Sampler:
    assert models.diffusion is not None
    return controls.control(name, of, models.diffusion.denoiser, length)


def plain(models: Models, num_steps: int = 4, temperature: float = 1.0) -> Sampler:
    assert models.diffusion is not None
    return Sampler(models.diffusion.denoiser, Grid(num_steps), Proposal(temperature))


# ---- Settings


def test_a_sweep_is_the_product_of_its_lists_and_a_setting_is_there_once(models: Models) -> None:
    both = [{"name": "grid", "num_steps": 2}, {"name": "tokens_per_pass"}]
    alone = {"plan": both, "proposal": {"temperature": [0.5, 1]}}
    sir = {
        **SWEEP,
        "candidates": [1, 3],
        "window": [[0, 1], [0.4, 1.0]],
        "controls": ["one_particle", "zero", "flipped"],
    }
    found = expanded(models, alone, sir, alone)
    assert list(found) == [
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
    assert [str(setting) for setting, *_ in found.values()] == list(found)
    roles = {name: role for name, (_, role, _own) in found.items()}
    assert roles["sir, learned, T=4, k=1"] == "", "it was named by the sweep itself"
    assert roles["sir, flipped learned, T=4, k=3"] == "flipped of sir, learned, T=4, k=3"


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 3, 8, None])
@pytest.mark.parametrize("window", [FULL, (0.3, 0.8), (0.0, 0.5)])
@pytest.mark.parametrize("energy", ["learned", "joint", "chain_rule"])
def test_expected_passes_are_the_mean_of_those_that_are_run(
    models: Models, num_steps: int | None, window: tuple[float, float], energy: str
) -> None:
    """Within 4 standard errors of the mean of n texts, each alone where others change its passes; exactly if fixed."""
    plan = TokensPerPass() if num_steps is None else Grid(num_steps)
    setting = sampler(models, energy).replace(plan=plan, candidates=2, window=window)
    together, n = (1, 100) if energy == "joint" and window != FULL else (400, 400)
    _, costs = draws.draw(setting, drawing(n)._replace(batch_size=together))
    passes = torch.tensor(costs["passes"], dtype=torch.float64)
    error = float(passes.std()) / n**0.5
    assert abs(float(passes.mean()) - grid.expected_passes(setting, LENGTH)) <= 4 * error + 1e-9
    never_together = num_steps is None and (window == FULL or energy == "chain_rule")
    assert (error == 0.0) == (num_steps == 1 or never_together)


def test_equal_passes_is_the_plain_sampler_at_the_cost_of_denoiser_and_energy(models: Models) -> None:
    length = 256
    setting = sampler(models).replace(plan=Grid(8), candidates=4)
    found = control("equal_passes", setting, models, length)
    assert grid.family(found) == "plain"
    wanted = grid.expected_passes(setting, length)
    assert wanted == pytest.approx(8 + 8 * 4)
    assert grid.expected_passes(found, length) == pytest.approx(wanted, abs=0.5)
    dear = control("equal_passes", setting.replace(candidates=64), models, length)
    assert dear.plan == TokensPerPass(), "no number of steps costs 520 passes of 256 tokens"


# ---- Controls


def test_one_particle_gives_the_tokens_of_the_plain_sampler_at_the_temperature_of_its_proposals(models) -> None:
    for selection in ("sir", "imh"):
        for temperature in (1.0, 0.6):
            setting = sampler(models, "posterior", selection=selection, proposal={"temperature": temperature})
            tokens, costs = draws.draw(control("one_particle", setting, models), drawing())
            alone, _ = draws.draw(plain(models, 4, temperature), drawing())
            assert torch.equal(tokens, alone)
            assert costs["ess"] == [1.0] * 6
            more, _ = draws.draw(setting, drawing())
            assert not torch.equal(more, alone), "with three particles it is another sampler"


def test_the_zero_energy_weighs_all_drafts_alike_and_costs_no_passes(models: Models) -> None:
    zero = control("zero", sampler(models), models)
    _, costs = draws.draw(zero, drawing())
    assert costs["ess"] == pytest.approx([3.0] * 6)
    assert costs["log_weight_std"] == [0.0] * 6
    assert costs["energy_passes"] == [0] * 6
    assert costs["passes"] == costs["calls"] == costs["denoiser_passes"]
    _, tempered = draws.draw(zero.replace(proposal=Proposal(0.6)), drawing())
    assert max(tempered["ess"]) < 3.0, "its weights make up for the temperature"


def test_the_flipped_energy_is_the_negative_of_its_own(models: Models) -> None:
    setting = sampler(models)
    flipped = control("flipped", setting, models)
    x_t = torch.full((2, LENGTH), ABC.mask_id)
    candidates = torch.randint(0, 4, (2, 3, LENGTH), generator=torch.Generator().manual_seed(0))
    inputs = {contracts.CANDIDATES: candidates, contracts.X_T: x_t, contracts.T: torch.ones(2)}
    parts = [each.parts for each in (setting, flipped)]
    own, negative = (each.energy(TensorDict(inputs))[contracts.ENERGY].double() for each in parts if each)
    assert torch.equal(own, -negative)
    assert own.abs().min() > 0.0


def test_an_energy_of_transitions_weighs_what_a_step_reveals(models: Models) -> None:
    """Its sampler is that of `transition.of_transitions`; zero and flipped are controls of the same kernel."""
    setting = sampler(models, "transition")
    zero, flipped = (control(name, setting, models) for name in ("zero", "flipped"))
    assert [grid.family(each) for each in (zero, flipped)] == ["sir, zero transition", "sir, flipped transition"]
    for each in (setting, zero, flipped):
        assert pipelines.pipeline(each, LENGTH).kernel.proposes == "revealed"
    assert pipelines.pipeline(sampler(models), LENGTH).kernel.proposes == "masked"
    assert models.diffusion is not None
    parts = (models.diffusion.schedule, models.diffusion.denoiser, models.diffusion.energies["transition"])
    kernel = builders.of_transitions(*parts, 3)
    wanted = pipelines.sample(builders.sampling(kernel, LENGTH, 4), 6, seed=0)
    tokens, costs = draws.draw(setting, drawing())
    assert torch.equal(tokens, wanted["tokens"])
    assert costs["energy_passes"] == (3 * wanted["info"]["denoiser_passes"]).tolist()
    drafts, _ = draws.draw(sampler(models), drawing())
    assert not torch.equal(tokens, drafts)


def test_a_joint_network_is_drawn_by_its_own_kernel_and_its_denoiser_is_its_control(models: Models) -> None:
    """Zero, one particle and the plain sampler of its denoiser are one; flipped and the energy differ from them."""
    setting = sampler(models, "joint")
    assert models.joint is not None
    assert models.diffusion is not None
    denoiser, schedule = models.joint.denoiser, models.joint.schedule
    assert isinstance(denoiser, SubsDenoiser)
    kernel = builders.two_heads(schedule, denoiser, 3)
    wanted = pipelines.sample(builders.sampling(kernel, LENGTH, 4), 6, seed=0)
    tokens, costs = draws.draw(setting, drawing())
    assert torch.equal(tokens, wanted["tokens"])
    assert costs["denoiser_passes"] == [1] * 6
    alone = pipelines.sample(builders.sampling(builders.ancestral(schedule, denoiser), LENGTH, 4), 6, seed=0)
    drawn = {}
    for name in ("one_particle", "zero", "flipped"):
        drawn[name], found = draws.draw(control(name, setting, models), drawing())
        assert found["denoiser_passes"] == [1] * 6
        if name == "zero":
            assert found["ess"] == pytest.approx([3.0] * 6)
    assert torch.equal(drawn["one_particle"], alone["tokens"])
    apart = builders.of_transitions(schedule, denoiser, energies.scaled(models.joint.energies["joint"], -1.0), 3)
    flipped = pipelines.sample(builders.sampling(apart, LENGTH, 4), 6, seed=0)["tokens"]
    assert torch.equal(drawn["flipped"], flipped)
    assert len({str(each.tolist()) for each in (tokens, flipped, alone["tokens"])}) == 3
    equal = control("equal_passes", setting.replace(plan=Grid(8)), models, 256)
    assert equal.denoiser is models.diffusion.denoiser, "the plain sampler of all others"
    assert grid.expected_passes(equal, 256) == pytest.approx(1 + 8 * 3, abs=0.5)


def test_a_denoiser_is_drawn_with_its_own_energy_by_the_kernel_that_reads_new_tokens_alone(models: Models) -> None:
    """A learned denoiser in place of a source's exact one; flipped, the same kernel weighs by the negative."""
    assert models.diffusion is not None
    own, schedule = models.diffusion.denoiser, models.diffusion.schedule
    assert isinstance(own, SubsDenoiser)
    learned = tiny_denoiser(1, ABC.mask_id, vocab_size=ABC.size)
    with torch.no_grad():
        learned.network.trunk.blocks[0].attention.out.weight.mul_(20.0)  # more of what other tokens say
    exact = models.diffusion._replace(denoiser=OracleDenoiser(torch.rand(4, 4), ABC.mask_id))
    beside = models._replace(diffusion=exact, learned=models.diffusion._replace(denoiser=learned))

    def drawn(setting: Sampler) -> torch.Tensor:
        return draws.draw(setting, drawing(40))[0]

    def wanted(kernel: Sampler) -> torch.Tensor:
        return pipelines.sample(builders.sampling(kernel, LENGTH, 4), 40, seed=0)["tokens"]

    setting = sampler(beside, "chain_rule")
    flipped, zero = (control(name, setting, beside) for name in ("flipped", "zero"))
    assert [grid.family(each) for each in (flipped, zero)] == ["sir, flipped chain_rule", "sir, zero chain_rule"]
    minus = energies.scaled(chain_rule.energy(learned), -1.0)
    better, worse = drawn(setting), drawn(flipped)
    assert torch.equal(better, wanted(builders.in_order(schedule, learned, 3)))
    assert torch.equal(worse, wanted(builders.of_transitions(schedule, learned, minus, 3)))
    assert not torch.equal(better, worse)
    by_imh = wanted(builders.in_order(schedule, learned, 3, selection=particles.imh))
    assert torch.equal(drawn(setting.replace(selection="imh")), by_imh)
    assert torch.equal(drawn(setting.replace(candidates=1)), wanted(builders.ancestral(schedule, learned)))
    here = sampler(models, "chain_rule")
    assert torch.equal(drawn(here.replace(candidates=1)), wanted(builders.ancestral(schedule, own)))
    assert torch.equal(drawn(here), wanted(builders.in_order(schedule, own, 3)))
    ((alone, *_),) = expanded(beside, {"plan": {"name": "grid", "num_steps": 4}}).values()
    assert isinstance(alone, Sampler)
    assert alone.denoiser is exact.denoiser, "no other setting is of the learned one"


def test_new_tokens_alone_are_read_by_the_energy_of_the_denoiser(models: Models) -> None:
    """A candidate costs two tokens for each but the first that a step reveals: passes by hand, one text at a time."""
    setting = sampler(models, "chain_rule", window=[0.5, 1.0])
    _, costs = draws.draw(setting, drawing())
    pipeline = pipelines.pipeline(setting, LENGTH)
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
    long = grid.expected_passes(setting.replace(plan=Grid(8), window=FULL), 256)
    assert long == pytest.approx(8 + 3 * 2 * (256 - 8) / 256), "2 k passes at most, in however many steps"


def test_written_in_order_it_is_of_the_denoiser_with_its_own_energy(models: Models) -> None:
    """A round is a call, and costs two tokens for each but the first that a step reveals."""
    (setting, *_) = (
        entry.setting
        for entry in expanded(
            models,
            {
                **{"selection": "speculative", "correction": {"name": "chain_rule"}, "window": [0.2, 1.0]},
                **{"plan": {"name": "grid", "num_steps": 2}, "proposal": {"temperature": 1.3}},
            },
        ).values()
    )
    assert isinstance(setting, Sampler)
    assert str(setting) == "speculative, chain_rule, T=2, t in [0.2, 1], temperature 1.3"
    assert models.diffusion is not None
    tokens, costs = draws.draw(setting, drawing(40))
    kernel = builders.speculative(models.diffusion.schedule, models.diffusion.denoiser, 1.3)
    out = pipelines.sample(builders.sampling(kernel, LENGTH, 2, (0.2, 1.0)), 40, seed=0)
    assert torch.equal(tokens, out["tokens"])
    rounds, revealed = out["info", "rounds"], out["info", "revealed"]
    assert costs["calls"] == (out["info", "denoiser_passes"] + rounds.sum(-1)).tolist()
    assert costs["energy_passes"] == (2.0 * (rounds * (revealed - 1)).sum(-1) / LENGTH).tolist()
    assert len(set(costs["calls"])) > 1
    assert grid.expected_passes(setting.replace(window=FULL), 256) > 2.0


def test_a_pass_is_a_text_that_was_read(models: Models) -> None:
    _, costs = draws.draw(sampler(models, window=[0.5, 1.0]), drawing())
    for denoised, weighed, passes, calls in zip(
        *(costs[name] for name in ("denoiser_passes", "energy_passes", "passes", "calls")), strict=True
    ):
        assert passes == denoised + weighed
        assert weighed == 3 * (calls - denoised) > 0
    assert models.ar is not None
    _, ar = draws.draw(Alone(models.ar, ABC.mask_id), drawing(2))
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
        setting = sampler(models, energy)
        expected, costs = draws.draw(setting, drawing())
        assert calls == ["clock", "batch", "batch"]
        calls.clear()
        tokens, of_fast = draws.draw(setting, drawing()._replace(execution="compile"))
        assert torch.equal(tokens, expected)
        assert {**of_fast, "ess": None, "log_weight_std": None} == {**costs, "ess": None, "log_weight_std": None}
        assert [call for call in calls if call != "compiled"] == ["batch", "batch", "clock", "batch", "batch"]
        assert "compiled" in calls[: calls.index("clock")]
        assert "compiled" not in calls[calls.index("clock") :]
        calls.clear()
