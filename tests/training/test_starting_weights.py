"""A training that goes on from earlier weights, or past its last step: what is taken, what does not fit, the rate."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import randomise
from one_layer import train as train_smallest
from smallest import LENGTH, ar_words, denoiser_words, settings_of, train, words_of
from tiny_runs import tiny_run

from edlm.data import vocabulary
from edlm.nn.networks import Transformer
from edlm.nn.shallow import ShallowNetwork
from edlm.recipes.pretrain_ar import PretrainAr
from edlm.recipes.pretrain_denoiser import PretrainDenoiser
from edlm.training import continuation, log, rates
from edlm.weights import checkpoints

SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "qk_norm": True}
RECIPES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "pretrain_denoiser": (PretrainDenoiser, denoiser_words, {"conditioning_size": 8}),
    "pretrain_ar": (PretrainAr, ar_words, {"conditioning_size": 32, "causal": True}),
}
every_recipe = pytest.mark.parametrize("name", RECIPES)


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "draw_curves", lambda _: None)


def saved(folder: Path, words: Any = None, **arguments: Any) -> Transformer:
    """A network folder whose weights are what no start gives; of twice the length that the runs train."""
    words = words or vocabulary.characters()
    network = Transformer(words.size, 2 * LENGTH, **{**SIZES, **arguments})
    randomise(network, 7)
    checkpoints.save_network(folder, network, words, {})
    return network


def recipe(name: str, folder: Path, *words: str) -> Any:
    """A recipe as it would begin to train."""
    cls, own, _ = RECIPES[name]
    made = cls(settings_of(name, *own(folder / "run"), *words))
    made.setup()
    return made


@every_recipe
def test_the_weights_are_those_of_the_folder_and_so_is_their_average(name: str, tmp_path: Path) -> None:
    earlier = saved(tmp_path / "earlier", **RECIPES[name][2])
    run = recipe(name, tmp_path, f"start_from={tmp_path / 'earlier'}").run
    for found in (run.network, run.average):
        for key, value in earlier.state_dict().items():
            assert torch.equal(found.state_dict()[key], value), key
    assert run.network.max_length == LENGTH
    assert run.identity["start_from"], "the run remembers whose weights it began with"
    assert "start_from" not in recipe(name, tmp_path).run.identity


@every_recipe
@pytest.mark.parametrize(
    ("said", "words", "arguments"),
    [
        ("hidden_size was 32, is 16", None, {"hidden_size": 32}),
        ("num_layers was 2, is 1", None, {"num_layers": 2}),
        ("another vocabulary: size was 4, is 28, mask_id was 3, is 27", vocabulary.characters("abc"), {}),
        (
            "padding = 'learned'",
            vocabulary.characters(specials=["pad"]).ending_by_pad(),
            {},
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    name: str, said: str, words: Any, arguments: dict[str, Any], tmp_path: Path
) -> None:
    saved(tmp_path / "earlier", words, **{**RECIPES[name][2], **arguments})
    with pytest.raises(ValueError, match="start_from = .*earlier.*" + re.escape(said)) as refusal:
        recipe(name, tmp_path, f"start_from={tmp_path / 'earlier'}")
    assert "\n" not in str(refusal.value)


@every_recipe
def test_a_folder_without_a_network_and_one_of_a_large_model_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"start_from = .*no checkpoint there"):
        recipe(name, tmp_path, f"start_from={tmp_path / 'nowhere'}")
    (tmp_path / "config.json").write_text("{}")
    other = "see --config smollm2" if name == "pretrain_ar" else "`edlm run adapt`"
    with pytest.raises(ValueError, match=rf"start_from = .*{other}"):
        recipe(name, tmp_path, f"start_from={tmp_path}")


@pytest.mark.parametrize("arguments", [{"dropout": 0.3}, {"causal": True}, {"block_size": 4}, {"pad_id": 3}], ids=str)
def test_what_shapes_no_weight_may_differ(arguments: dict[str, Any], tmp_path: Path) -> None:
    earlier, words = saved(tmp_path / "earlier", **arguments), vocabulary.characters()
    network = Transformer(words.size, LENGTH, **SIZES)
    continuation.take_up(network, str(tmp_path / "earlier"), words)
    for key, value in earlier.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key


def test_a_network_of_another_class_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "earlier")
    words = vocabulary.characters()
    with pytest.raises(ValueError, match="holds a Transformer, and this run trains a ShallowNetwork"):
        continuation.take_up(ShallowNetwork(words.size, LENGTH, **SIZES), str(tmp_path / "earlier"), words)


def test_a_run_begun_with_other_weights_is_another_run(tmp_path: Path) -> None:
    saved(tmp_path / "earlier", conditioning_size=8)
    first = recipe("pretrain_denoiser", tmp_path, f"start_from={tmp_path / 'earlier'}")
    first.run.save_checkpoint()
    again = recipe("pretrain_denoiser", tmp_path, f"start_from={tmp_path / 'earlier'}")
    with pytest.raises(ValueError, match=r"start_from was '.*', is None"):
        recipe("pretrain_denoiser", tmp_path).load_checkpoint()
    again.load_checkpoint()


def other_texts(folder: Path) -> list[str]:
    """Words for a corpus that no run of this file began with."""
    folder.mkdir()
    for number, split in enumerate(("train", "valid", "test")):
        (folder / f"{split}.txt").write_text("abc" * (200 + number), "utf-8")
    return ["corpus._component_=edlm.corpora.text_files", f"corpus.path={folder}"]


@pytest.mark.slow
@every_recipe
def test_a_run_that_was_trained_is_trained_longer_and_then_on_other_texts(name: str, tmp_path: Path) -> None:
    own = RECIPES[name][1]
    train(name, *own(tmp_path / "run"), "steps=2")
    train(name, *own(tmp_path / "run"), "steps=4")
    assert json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))["step"] == 4
    more = [*own(tmp_path / "more"), f"start_from={tmp_path / 'run'}", *other_texts(tmp_path / "other"), "steps=20"]
    made = RECIPES[name][0](settings_of(name, *more))
    made.setup()
    earlier = checkpoints.load_network(tmp_path / "run")
    for key, value in earlier.state_dict().items():
        assert torch.equal(made.run.network.state_dict()[key], value), key
    before = made.validate(made.run.average)
    train(name, *more)
    trained = RECIPES[name][0](settings_of(name, *more))
    trained.setup()
    trained.load_checkpoint()
    after = trained.validate(trained.run.average)
    (figure,) = (each for each in before if not each.endswith("error"))
    assert after[figure] < before[figure]


def test_a_denoiser_that_was_made_of_an_ar_model_is_trained_further_on_other_texts(tmp_path: Path) -> None:
    train("pretrain_ar", *ar_words(tmp_path / "ar"), "steps=2")
    same = ["threads=1", "steps=2", "batch_size=8", "valid_rows=4", f"length={LENGTH}"]
    train("adapt", f"start_from={tmp_path / 'ar'}", f"output_dir={tmp_path / 'adapted'}", *same)
    sizes = ["network.conditioning_size=0", "network.norm_bias=true"]  # of a network that was folded
    more = [*denoiser_words(tmp_path / "run"), "steps=2", *sizes]
    train("pretrain_denoiser", *more, f"start_from={tmp_path / 'adapted'}", *other_texts(tmp_path / "other"))
    assert json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))["step"] == 2


# ---- Past the last step


def learned(folder: Path, steps: int, **changes: Any) -> list[float]:
    """Train to a step, and give the rate of every step that was taken."""
    optimizer = {"_component_": "torch.optim.SGD", "lr": 1.0}
    plain = {"decay": "cosine", "warmup_steps": 2, "save_every": 1, "valid_every": steps}
    run = tiny_run(folder, steps=steps, optimizer=optimizer, **{**plain, **changes})
    found: list[float] = []
    run.optimizer.register_step_pre_hook(lambda own, *_: found.append(own.param_groups[0]["lr"]))
    run.load_checkpoint()
    run.train()
    run.save_checkpoint()
    return found


def test_a_finished_run_that_is_given_more_steps_rises_and_falls_again(tmp_path: Path) -> None:
    """Over the steps that were added, wherever it is stopped among them."""
    assert learned(tmp_path, 4) == [rates.factor(step, 4, 2, "cosine") for step in range(4)]
    more = [rates.factor(step, 6, 2, "cosine") for step in range(6)]
    assert more[0] < more[1] > more[5]
    run = tiny_run(
        tmp_path,
        steps=10,
        decay="cosine",
        warmup_steps=2,
        optimizer={"_component_": "torch.optim.SGD", "lr": 1.0},
        save_every=1,
        valid_every=10,
    )
    run.load_checkpoint()
    run._update()
    run.save_checkpoint()
    assert checkpoints.load_state(tmp_path / "checkpoints" / "step_00000005")["began"] == 4
    assert learned(tmp_path, 10) == pytest.approx(more[1:])
    assert learned(tmp_path, 12) == pytest.approx([rates.factor(step, 2, 2, "cosine") for step in range(2)])


def test_an_unfinished_run_whose_rate_falls_keeps_its_steps_and_none_loses_any(tmp_path: Path) -> None:
    learned(tmp_path, 4)
    with pytest.raises(ValueError, match="steps was 4, is 3"):
        learned(tmp_path, 3)
    run = tiny_run(
        tmp_path / "other",
        steps=6,
        decay="cosine",
        warmup_steps=2,
        optimizer={"_component_": "torch.optim.SGD", "lr": 1.0},
        save_every=1,
        valid_every=6,
    )
    run.load_checkpoint()
    run._update()
    run.save_checkpoint()
    with pytest.raises(ValueError, match="steps was 6, is 8"):
        learned(tmp_path / "other", 8)


def test_a_constant_rate_goes_on_without_another_warm_up(tmp_path: Path) -> None:
    assert learned(tmp_path, 4, decay="constant") == [0.5, 1.0, 1.0, 1.0]
    assert learned(tmp_path, 6, decay="constant") == [1.0, 1.0]


def test_a_state_of_an_earlier_version_began_at_zero(tmp_path: Path) -> None:
    train_smallest(tmp_path / "run", steps=1)
    file = tmp_path / "run" / "checkpoints" / "step_00000001" / "training.json"
    record = json.loads(file.read_text("utf-8"))
    record["state"]["pairs"] = [pair for pair in record["state"]["pairs"] if pair[0] != "began"]
    del record["sha256"]["state"]
    file.write_text(json.dumps(record))
    train_smallest(tmp_path / "run", steps=2)
    state = checkpoints.load_state(tmp_path / "run" / "checkpoints" / "step_00000002")
    assert (state["step"], state["began"]) == (2, 0)


def test_words_of_the_configs_name_the_key() -> None:
    for name in RECIPES:
        assert settings_of(name)["start_from"] is None
        assert words_of({"start_from": None}) == ["start_from=null"]
