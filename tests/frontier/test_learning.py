"""What the recipe `oracle` trains beside a source: on which texts, against what, from what, and what resumes it."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from edlm import contracts
from edlm.data import vocabulary
from edlm.frontier import learning as frontier_learning
from edlm.frontier.learning import NAMES, Learning
from edlm.likelihood import hidden_markov
from edlm.nn.networks import JointNetwork
from edlm.objectives import batches
from edlm.process import schedules
from edlm.recipes import oracle
from edlm.samplers.corrections import Joint
from edlm.weights.named import Diffusion, Models

SYMBOLS, LENGTH, SEED = 2, 4, 7
SOURCE = hidden_markov.random_hidden_markov(2, 3, SYMBOLS, 3.0)
SIZES = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "conditioning_size": 0}
SETTINGS: dict[str, Any] = {
    "network": {"_component_": "edlm.networks.EnergyNetwork", **SIZES},
    "denoiser": "mdlm",
    "start_from": "denoiser",
    "num_energy_layers": 1,
    "objective": "info_nce",
    "num_negatives": 3,
    "transition_steps": [2, 2],
    "num_texts": 16,
    **{"steps": 1, "batch_size": 8, "accumulate": 1, "warmup_steps": 0, "decay": "constant", "clip_norm": 1.0},
    **{"optimizer": {"_component_": "torch.optim.AdamW", "lr": 0.01}, "ema_decay": 0.5, "precision": "float32"},
    **{"parallel": "data", "recompute": False, "compile": False, "time_low": 0.5, "patience": None, "resume": True},
    **{"log_every": 1, "valid_every": 9, "valid_rows": 2, "save_every": 9, "keep_last": 1, "keep_best": False},
    **{"log_to": [], "sample_every": None},
}


def learning(folder: Path, settings: dict[str, Any], source: hidden_markov.Source = SOURCE) -> Learning:
    """Training beside the source, with some settings changed."""
    diffusion = Diffusion(hidden_markov.denoiser(source, LENGTH), schedules.log_linear(), {})
    models = Models(vocabulary.characters("ab"), LENGTH, diffusion, None, {})
    return Learning(source, models, diffusion, {**SETTINGS, **settings}, folder, SEED)


class Asked(NamedTuple):
    """What a training run was given, which of its weights it may change, and what it gave back."""

    arguments: dict[str, Any]
    trained: set[str]
    average: nn.Module

    def stage(self) -> dict[str, Tensor]:
        """A batch through its pipeline."""
        texts = self.arguments["blocks"][torch.arange(8)]
        with torch.no_grad():
            out = self.arguments["stages"](batches.training_batch(texts, SEED, torch.arange(8), 0, 8))
        return {key: out[key] for key in (contracts.LOSS, contracts.T)}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Asked]:
    """Every run by its folder's name: nothing is trained, and the average has every weight one higher."""
    found: dict[str, Asked] = {}

    def run(**arguments: Any) -> Any:
        network, average = arguments["network"], deepcopy(arguments["network"])
        with torch.no_grad():
            for weight in average.parameters():
                weight.add_(1.0)
        trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
        found[arguments["folder"].name] = Asked(arguments, trained, average)
        return Run(average)

    class Run(NamedTuple):
        average: nn.Module

        def load_checkpoint(self) -> None: ...
        def train(self) -> None: ...

    monkeypatch.setattr(frontier_learning, "TrainingRun", run)
    return found


def test_all_learn_from_the_same_texts_which_nothing_is_compared_with(asked: dict[str, Asked], tmp_path: Path) -> None:
    frontier_learning.learn(NAMES, learning(tmp_path, {}))
    assert set(asked) == {"energy", "transition", "denoiser", "joint"}
    texts = [run.arguments["blocks"] for run in asked.values()]
    assert texts[0].shape == (16, LENGTH)
    assert all(torch.equal(each, texts[0]) for each in texts)
    assert {run.arguments["seed"] for run in asked.values()} == {SEED}
    for purpose in (oracle._SAMPLED, oracle._COMPARED, oracle._BOUNDED):
        assert not torch.equal(texts[0], hidden_markov.texts(SOURCE, 16, LENGTH, SEED + purpose))


@pytest.mark.parametrize(("objective", "num_negatives", "nats"), [("info_nce", 5, 6.0), ("nce", 5, 4.0)])
def test_each_is_trained_by_the_objective_with_as_many_negatives_on_the_grids(
    asked: dict[str, Asked], tmp_path: Path, objective: str, num_negatives: int, nats: float
) -> None:
    """Before it learns an energy is zero, so that its loss is ln(1 + n) when it ranks and 2 ln 2 when it does not."""
    own = learning(tmp_path, {"objective": objective, "num_negatives": num_negatives, "transition_steps": [1, 1]})
    frontier_learning.learn(NAMES, own)
    for name in ("energy", "transition", "joint"):
        out = asked[name].stage()
        torch.testing.assert_close(out[contracts.LOSS], torch.full((8,), nats).log(), check_dtype=False)
        assert (out[contracts.T] == 1.0).all() == (name != "energy"), "a grid of one step starts from masks alone"
    for name in ("energy", "denoiser"):
        assert (asked[name].stage()[contracts.T] > 0.5).all(), "not below time_low"


def test_the_chain_rule_is_that_of_the_learned_denoiser(asked: dict[str, Asked], tmp_path: Path) -> None:
    """Which is trained for it alone, and stands beside the exact one."""
    own = learning(tmp_path, {"start_from": "scratch"})
    models = frontier_learning.learn(["denoiser"], own)
    assert set(asked) == {"denoiser"}
    assert models.learned is not None
    assert models.learned.denoiser.network is asked["denoiser"].average  # type: ignore[attr-defined]
    assert not models.learned.energies, "what corrects it is its own"
    assert models.diffusion is not None
    assert models.diffusion.denoiser is own.exact.denoiser


def test_a_denoiser_may_be_trained_in_order_too(asked: dict[str, Asked], tmp_path: Path) -> None:
    """On the grids that energies are trained for; untrained, its two bounds are the same."""
    frontier_learning.learn(["denoiser"], learning(tmp_path, {"denoiser": "chain_rule", "transition_steps": [1, 1]}))
    out = asked["denoiser"].stage()
    torch.testing.assert_close(out[contracts.LOSS], torch.full((8,), 2 * LENGTH * math.log(SYMBOLS)))
    assert (out[contracts.T] == 1.0).all()


@pytest.mark.parametrize("start_from", ["denoiser", "scratch"])
def test_energies_start_from_the_trained_denoiser_or_from_nothing(
    asked: dict[str, Asked], tmp_path: Path, start_from: str
) -> None:
    frontier_learning.learn(["learned", "transition"], learning(tmp_path, {"start_from": start_from}))
    assert ("denoiser" in asked) == (start_from == "denoiser")
    trunks = [asked[name].arguments["network"].trunk.state_dict() for name in ("energy", "transition")]
    assert all(torch.equal(value, trunks[1][name]) for name, value in trunks[0].items())
    if start_from == "denoiser":
        start = asked["denoiser"].average.trunk.state_dict()  # type: ignore[operator, union-attr]
        assert all(torch.equal(value, start[name]) for name, value in trunks[0].items())


def test_the_held_out_loss_is_that_of_the_network_that_is_asked_about(asked: dict[str, Asked], tmp_path: Path) -> None:
    frontier_learning.learn(["transition"], learning(tmp_path, {"valid_rows": 64}))
    run = asked["transition"]
    untrained = run.arguments["validate"](run.arguments["network"])["loss"]
    assert untrained == pytest.approx(math.log(1 + SETTINGS["num_negatives"]))
    other = deepcopy(run.arguments["network"])
    torch.manual_seed(0)
    nn.init.normal_(other.scalar.weight)
    assert run.arguments["validate"](other)["loss"] != pytest.approx(untrained, abs=1e-3)


def test_a_joint_network_starts_from_its_trained_denoiser_and_keeps_it(asked: dict[str, Asked], tmp_path: Path) -> None:
    found = frontier_learning.learn(["joint"], learning(tmp_path, {})).joint
    assert found is not None
    first, then = asked["denoiser"], asked["joint"]
    network = then.arguments["network"]
    start = first.average.state_dict()
    assert all(torch.equal(value, start[name]) for name, value in network.denoiser.state_dict().items())
    assert first.trained
    assert then.trained
    assert not any(name.startswith("denoiser.") for name in then.trained)
    assert isinstance(found.denoiser.network, JointNetwork)
    assert found.denoiser.network is then.average, "the averaged weights, of the denoiser and of the energy"
    energy = dict(Joint().parts(found.denoiser).energy.named_parameters())
    assert energy
    assert {id(each) for each in energy.values()} <= {id(each) for each in then.average.parameters()}


def test_a_run_says_of_what_it_is(asked: dict[str, Asked], tmp_path: Path) -> None:
    """The source's tables, the length, and the settings on which what it trains depends."""
    frontier_learning.learn(NAMES, learning(tmp_path, {}))
    tables = [[round(float(each), 12) for each in table.flatten()] for table in SOURCE]
    common = {"source": tables, "length": LENGTH, "network": SETTINGS["network"], "num_texts": 16}
    contrast = {"start_from": "denoiser", "objective": "info_nce", "num_negatives": 3}
    steps = {"transition_steps": [2, 2]}
    joint = {"objective": "info_nce", "num_negatives": 3, "num_energy_layers": 1, **steps, "scope": "transition"}
    assert {name: run.arguments["identity"] for name, run in asked.items()} == {
        "denoiser": common,
        "energy": {**common, **contrast, "scope": "draft"},
        "transition": {**common, **contrast, **steps, "scope": "transition"},
        "joint": {**common, **joint},
    }
    asked.clear()
    frontier_learning.learn(["denoiser"], learning(tmp_path, {"denoiser": "chain_rule"}))
    assert asked["denoiser"].arguments["identity"] == {**common, "denoiser": "chain_rule", **steps}


def test_networks_have_the_sizes_of_the_source_and_the_weights_of_the_seed(
    asked: dict[str, Asked], tmp_path: Path
) -> None:
    own = learning(tmp_path, {"start_from": "scratch"})
    models = frontier_learning.untrained(own)
    frontier_learning.learn(NAMES, own)
    assert models.diffusion is not None
    assert models.diffusion.energies.keys() == {"energy", "transition"}
    first = [asked[name].arguments["network"].embedding.weight for name in ("energy", "transition")]
    assert torch.equal(*first)
    other = frontier_learning._energy_network(own._replace(seed=SEED + 1))
    assert not torch.equal(other.embedding.weight, first[0])
    assert first[0].shape[0] == own.exact.denoiser.vocab_size
    assert {run.arguments["network"].arguments["max_length"] for run in asked.values()} == {LENGTH}


@pytest.mark.parametrize(
    ("symbols", "spelled"),
    [(2, "ab"), (3, "abc")],
)
def test_symbols_of_a_source_are_letters(symbols: int, spelled: str) -> None:
    models, exact = frontier_learning.exact_models(hidden_markov.random_markov(0, symbols), LENGTH)
    assert models.vocabulary.decode(torch.arange(symbols).unsqueeze(0)) == [spelled]
    assert (models.max_length, models.diffusion is exact, models.ar, models.records) == (LENGTH, True, None, {})
    assert exact.energies.keys() == {"exact", "exact, carry_over"}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an energy and a joint network, neither of which trains again where nothing has changed."""
    folder = tmp_path_factory.mktemp("learned")
    for name in ("transition", "joint"):
        frontier_learning.learn([name], learning(folder, {}))
        frontier_learning.learn([name], learning(folder, {}))
    return folder


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"transition_steps": [1, 2]}, r"transition_steps was \[2, 2\], is \[1, 2\]"),
        ({"objective": "nce"}, "objective was 'info_nce', is 'nce'"),
        ({"num_negatives": 2}, "num_negatives was 3, is 2"),
        ({"num_texts": 32}, "num_texts was 16, is 32"),
        ({"time_low": 0.25}, "time_low was 0.5, is 0.25"),
        ({}, r"source was \[\["),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_run_is_not_resumed_with_what_would_have_trained_another(
    learned: Path, settings: dict[str, Any], said: str
) -> None:
    """Of an energy and of a joint network."""
    other = SOURCE if settings else hidden_markov.random_hidden_markov(3, 3, SYMBOLS, 3.0)
    larger = {"network": {**SETTINGS["network"], "hidden_size": 16}}
    for name in ("transition", "joint"):
        for change, source, message in ((settings, other, said), (larger, SOURCE, "network was")):
            with pytest.raises(ValueError, match=f"cannot resume {learned}.*({message})"):
                frontier_learning.learn([name], learning(learned, change, source))
