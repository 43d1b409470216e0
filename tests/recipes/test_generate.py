"""The recipe `generate`: every text is written, by the rules and networks that the config names."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builders
import pytest
import torch
from builders import of_transitions
from running import Runner
from smallest import energy_words, settings_of

import edlm
from edlm.data import vocabulary
from edlm.evaluation import generation
from edlm.frontier import closing
from edlm.models import autoregressive, denoisers, energies
from edlm.nn.networks import Transformer
from edlm.process import schedules
from edlm.recipes import generate
from edlm.runs import processes
from edlm.samplers import pipelines
from edlm.weights import checkpoints


def test_every_sample_is_written_whatever_the_batch_size(run: Runner, trained: Path, tmp_path: Path) -> None:
    texts = []
    for batch_size in (2, 3):
        output = tmp_path / f"{batch_size}.jsonl"
        base = [f"denoiser={trained / 'denoiser'}", "energy=null", f"output={output}", "num_samples=3", "threads=1"]
        assert run("generate", *base, "num_steps=4", f"batch_size={batch_size}")[0] == 0
        texts.append([json.loads(line)["text"] for line in output.read_text().splitlines()])
    assert len(texts[0]) == 3
    assert texts[0] == texts[1]


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(
    ("num_particles", "told"), [(1, ""), (3, "candidates = 3 is not used: nothing corrects the denoiser\n")]
)
def test_the_first_process_says_what_does_nothing(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    num_particles: int,
    told: str,
    is_first: bool,
) -> None:
    words = [f"denoiser={trained / 'denoiser'}", "energy=null", f"output={tmp_path / 'texts.jsonl'}", "num_steps=2"]
    settings = settings_of("generate", *words, "window=[0.0, 1.0]", f"num_particles={num_particles}")
    recipe = generate.Generate(settings)
    recipe.load_checkpoint()
    capsys.readouterr()
    monkeypatch.setattr(processes, "is_first", lambda: is_first)
    recipe.setup()
    assert capsys.readouterr().out == (told if is_first else "")


def test_its_rate_is_that_of_the_texts_that_it_drew(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "texts.jsonl"
    words = [f"denoiser={trained / 'denoiser'}", "energy=null", f"output={output}", "num_steps=2", "batch_size=2"]
    for num_samples, rate in ((4, 0.5), (6, 0.25), (6, 0.0)):  # of all, of the two that are missing, of none
        recipe = generate.Generate(settings_of("generate", *words, f"num_samples={num_samples}"))
        recipe.load_checkpoint()
        recipe.setup()
        monkeypatch.setattr(generate, "time", SimpleNamespace(monotonic=iter((100.0, 108.0)).__next__))
        recipe.generate()
        assert recipe.rate == rate


def test_texts_belong_to_the_weights_that_drew_them(run: Runner, trained: Path, tmp_path: Path) -> None:
    """The same command after more training draws anew elsewhere, and does not take old texts for its own."""
    folder = shutil.copytree(checkpoints.find_network(trained / "denoiser"), tmp_path / "denoiser")
    words = [f"denoiser={folder}", "energy=null", f"output={tmp_path / 'texts.jsonl'}", "num_samples=2", "num_steps=2"]
    assert run("generate", *words)[0] == run("generate", *words)[0] == 0
    network = checkpoints.load_as(Transformer, folder)
    with torch.no_grad():
        network.head.weight.add_(1.0)
    description = json.loads((folder / "network.json").read_text())
    shutil.rmtree(folder)
    notes = {key: value for key, value in description.items() if key not in ("class", "arguments", "vocabulary")}
    checkpoints.save_network(folder, network, vocabulary.characters(), notes)
    status, _, error = run("generate", *words)
    assert (status, "holds other texts" in error) == (2, True)


def test_an_ar_model_alone_is_sampled_exactly_whatever_the_batch_size(
    run: Runner, trained_ar: Path, tmp_path: Path
) -> None:
    texts: list[list[dict[str, Any]]] = []
    for batch_size in (2, 3):
        output = tmp_path / f"{batch_size}.jsonl"
        base = [
            "denoiser=null",
            "energy=null",
            f"ar={trained_ar / 'ar'}",
            f"output={output}",
            "num_samples=3",
            "threads=1",
        ]
        status, shown, error = run("generate", *base, "prompt=the name", f"batch_size={batch_size}")
        assert status == 0, error
        assert "texts per second" in shown
        texts.append([json.loads(line) for line in output.read_text().splitlines()])
    assert [record["text"] for record in texts[0]] == [record["text"] for record in texts[1]]
    network = checkpoints.load_as(Transformer, trained_ar / "ar")
    for record in texts[0]:
        assert record["text"].startswith("the name")
        assert len(record["text"]) == 32
        with torch.no_grad():
            log_prob = autoregressive.ar_log_prob(network, torch.tensor([record["tokens"]]), 27, 27)
        assert record["log_prob"] == pytest.approx(float(log_prob[0, 8:].double().sum()), abs=1e-3)


def test_an_energy_of_transitions_is_trained_bounded_and_sampled_as_one(
    run: Runner, trained: Path, tmp_path: Path
) -> None:
    base = [*energy_words(tmp_path), f"denoiser={trained / 'denoiser'}", "scope=transition"]
    status, shown, error = run("edlm_nce", *base, "transition_steps=[1,4]", "steps=12", "optimizer.lr=0.02")
    assert status == 0, error
    assert "<= " in shown
    ways = json.loads((tmp_path / "energy" / "report.json").read_text())["ways"]
    plain, corrected = ways[closing.PLAIN], ways[closing.ENERGY]
    assert (plain["figure"], corrected["figure"]) == ("exact_nll", "transition_nelbo")
    assert corrected["bits_per_character"]["mean"] != plain["bits_per_character"]["mean"], "the energy knows something"
    description = checkpoints.read_description(checkpoints.find_network(tmp_path / "energy"))
    assert (description["scope"], description["transition_steps"]) == ("transition", [1, 4])
    status, _, error = run("edlm_nce", *base, "transition_steps=[1,5]", "steps=12", "optimizer.lr=0.02")
    assert (status, "transition_steps was [1, 4], is [1, 5]" in error) == (2, True)

    output, few = tmp_path / "x.jsonl", ["num_samples=4", "num_steps=2", "num_particles=5", "window=[0,1]", "threads=1"]
    few.append("energy_temperature=1e-4")  # an energy of 12 steps decides little
    paths = [f"denoiser={trained / 'denoiser'}", f"energy={tmp_path / 'energy'}", f"output={output}"]
    status, _, error = run("generate", *paths, *few)
    assert status == 0, error
    drawn = [json.loads(line)["tokens"] for line in output.read_text().splitlines()]
    denoiser, energy = (checkpoints.load_network(folder) for folder in (trained / "denoiser", tmp_path / "energy"))
    parts = (schedules.log_linear(), denoisers.subs(denoiser, 27))
    kernels = (
        of_transitions(*parts, energies.learned_transition(energy), 5, 1e-4),
        builders.importance(*parts, energies.learned(energy), 5, 1e-4),
    )
    as_one, as_draft = (
        pipelines.sample(builders.sampling(kernel, 32, 2), 4, seed=0)["tokens"].tolist() for kernel in kernels
    )
    assert drawn == as_one != as_draft
    status, shown, error = run("evaluate", paths[0], paths[1], "ar=null", "rows=2", f"output_dir={tmp_path / 'card'}")
    assert (status, "energy: transition_nelbo" in shown) == (0, True), error


def test_the_word_chain_rule_is_the_energy_that_the_denoiser_has_in_itself(
    run: Runner, trained: Path, tmp_path: Path
) -> None:
    """With all particles, with as many as it takes, and over a text of two windows; its passes count by tokens."""
    base = [f"denoiser={trained / 'denoiser'}", "energy=chain_rule", "num_samples=4", "num_steps=3", "num_particles=5"]
    base += ["window=[0,1]", "threads=1", "energy_temperature=1e-3"]  # a denoiser of 6 steps decides little
    denoiser = denoisers.subs(checkpoints.load_network(trained / "denoiser"), 27)
    fixed = builders.in_order(schedules.log_linear(), denoiser, 5, 1e-3)
    for name, kernel, words in (
        ("all", fixed, []),
        ("rounds", builders.in_rounds(fixed, 1.5), ["target_ess=1.5"]),
    ):
        output = tmp_path / f"{name}.jsonl"
        status, shown, error = run("generate", *base, *words, f"output={output}")
        assert status == 0, error
        assert "energy passes" in shown
        records = [json.loads(line) for line in output.read_text().splitlines()]
        out = edlm.sample(builders.sampling(kernel, 32, 3), 4, seed=0)
        assert [record["tokens"] for record in records] == out["tokens"].tolist()
        info = out["info"]
        passes = (2 * info["particles"] * (info["revealed"] - 1)).sum(-1) / 32
        assert [record["energy_passes"] for record in records] == passes.tolist()
        assert passes.max() <= 2 * 5
        assert [record["denoiser_passes"] for record in records] == info["denoiser_passes"].tolist()
    plain = edlm.sample(builders.sampling(builders.ancestral(schedules.log_linear(), denoiser), 32, 3), 4, seed=0)
    assert [record["tokens"] for record in records] != plain["tokens"].tolist()
    status, _, error = run("generate", *base, f"output={tmp_path / 'long.jsonl'}", "length=40", "stride=8")
    assert status == 0, error
    output, words = tmp_path / "in_order.jsonl", ["selection=speculative", "energy_temperature=1", "temperature=0.8"]
    status, shown, error = run("generate", *base, *words, f"output={output}")
    assert status == 0, error
    out = edlm.sample(builders.sampling(builders.speculative(schedules.log_linear(), denoiser, 0.8), 32, 3), 4, seed=0)
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["tokens"] for record in records] == out["tokens"].tolist()
    passes = (2 * out["info", "rounds"] * (out["info", "revealed"] - 1)).sum(-1) / 32
    assert [record["energy_passes"] for record in records] == passes.tolist()
    assert [record["ess"] for record in records] == [None] * 4
    assert "effective particles" not in shown


@pytest.mark.parametrize("form", ["posterior", "carry_over"])
def test_an_ar_model_beside_a_denoiser_corrects_it(run: Runner, trained_ar: Path, tmp_path: Path, form: str) -> None:
    base = [f"denoiser={trained_ar / 'denoiser'}", "energy=null", f"ar={trained_ar / 'ar'}", f"ar_form={form}"]
    few = ["num_samples=2", "num_steps=4", "num_particles=3", "window=[0,1]", "threads=1"]
    status, shown, error = run("generate", *base, *few, f"output={tmp_path / 'x.jsonl'}")
    assert status == 0, error
    assert "energy passes" in shown
    records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [record["energy_passes"] for record in records] == [3 * record["denoiser_passes"] for record in records]
    found = generation.load(settings_of("generate", *base, f"output={tmp_path / 'y.jsonl'}"), torch.device("cpu"))
    assert found.correction.energy.module.carry_over == (form == "carry_over")
    assert found.correction.energy.module.bos_id == 27, "every position counts in both parts"


def test_rules_of_sampling_come_from_the_config(run: Runner, trained_ar: Path, tmp_path: Path) -> None:
    """A text of one and a half windows, by a sharper nucleus, with as many particles as it takes."""
    output = tmp_path / "x.jsonl"
    base = [f"denoiser={trained_ar / 'denoiser'}", "energy=null", f"ar={trained_ar / 'ar'}", f"output={output}"]
    rules = ["temperature=0.9", "nucleus=0.95", "target_ess=1.5", "length=48", "stride=16", "window=[0,1]"]
    status, _, error = run("generate", *base, *rules, "num_samples=2", "num_steps=4", "num_particles=4", "threads=1")
    assert status == 0, error
    for record in map(json.loads, output.read_text().splitlines()):
        assert len(record["tokens"]) == 48
        assert 2 * record["denoiser_passes"] <= record["energy_passes"] <= 4 * record["denoiser_passes"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["denoiser=null"], "denoiser and ar are both null: name one of them, or both"),
        (["denoiser=null", "ar=a", "energy=chain_rule"], "exclude each other: set one to null"),
        (["selection=speculative"], "selection = 'speculative' needs energy = 'chain_rule', not "),
        (
            ["selection=speculative", "energy=chain_rule", "target_ess=2"],
            "selection = 'speculative' needs target_ess = None, not 2",
        ),
        (
            ["selection=speculative", "energy=chain_rule", "energy_temperature=0.5"],
            "selection = 'speculative' needs energy_temperature = 1.0, not 0.5",
        ),
        (["denoiser=null", "energy=chain_rule"], "denoiser and ar are both null: name one of them, or both"),
        (["energy=a", "ar=b"], "energy = 'a' and ar = 'b' exclude each other: set one to null"),
        (["ar=a", "ar_form=both"], "ar_form = 'both' must be one of posterior, carry_over"),
        (["denoiser=null", "ar=a", "execution=compile"], "execution = 'compile' needs a denoiser"),
        (["denoiser=null", "ar=a", "live=true"], "live = True needs a denoiser"),
        (["denoiser=null", "ar={}/ar", "length=64"], "length = 64 must lie in 1..32"),
        (["ar=/nowhere"], "/nowhere: no checkpoint there"),
        (
            ["ar={}/denoiser"],
            "ar = '{}/denoiser' holds a network that is not causal: `edlm run pretrain_ar` trains one",
        ),
        (["denoiser={}/ar"], "denoiser = '{}/ar' holds a network that was not trained as a denoiser"),
        (
            ["ar={}/other"],
            "{}/denoiser and {}/other were trained on different vocabularies: size = 28 and 4, mask_id = 27",
        ),
        (
            ["length=40"],
            "length = 40 is more than the denoiser's 32: give a stride below 32, by which its window moves",
        ),
        (["length=40", "stride=32"], "stride = 32 must lie in 1..31: a window has 32 tokens"),
        (["nucleus=0"], "nucleus = 0 must be a number above 0 and at most 1"),
        (["denoiser=null", "ar={}/ar", "nucleus=0.5"], "nucleus = 0.5 needs a denoiser"),
    ],
)
def test_networks_that_do_not_go_together_get_one_line(
    run: Runner, trained_ar: Path, tmp_path: Path, overrides: list[str], said: str
) -> None:
    base = [f"denoiser={trained_ar / 'denoiser'}", "energy=null", f"output={tmp_path / 'x.jsonl'}", "num_samples=1"]
    status, _, error = run("generate", *base, *(word.replace("{}", str(trained_ar)) for word in overrides))
    assert status == 2
    assert said.replace("{}", str(trained_ar)) in error
    assert len(error.splitlines()) == 1
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["denoiser=/nowhere"], "/nowhere: no checkpoint there"),
        (["energy=/nowhere"], "/nowhere: no checkpoint there"),
        (["energy={trained}/denoiser"], "holds a network of class Transformer, not EnergyNetwork"),
        (["num_particles=0"], "num_particles = 0 must be a whole number of at least 1"),
        (["num_steps=0"], "num_steps = 0 must be a whole number of at least 1"),
        (["window=[1,0.2]"], "window = [1, 0.2] must be two times [low, high]"),
        (["window=[-1,0.2]"], "window = [-1, 0.2] must be two times [low, high]"),
        (["length=4096"], "length = 4096 is more than the denoiser's 32"),
        (["prompt=THE"], "character 'T' at offset 0 is not in the vocabulary"),
        (["prompt=" + 40 * "a"], "does not fit"),
        (["selection=best"], "selection = 'best' must be one of sir, imh, greedy"),
        (["execution=cudagraph"], "needs a pipeline on a CUDA device"),
        (["device=cuda"], "no CUDA device is there"),
        (["output=/dev/null/x.jsonl"], "output = '/dev/null' cannot be written"),
    ],
)
def test_a_mistake_in_generate_gets_one_line(
    run: Runner, trained: Path, tmp_path: Path, overrides: list[str], said: str
) -> None:
    if torch.cuda.is_available() and said in ("needs a pipeline on a CUDA device", "no CUDA device is there"):
        pytest.skip("a CUDA device is there")
    base = [f"denoiser={trained / 'denoiser'}", "energy=null", f"output={tmp_path / 'x.jsonl'}", "num_samples=1"]
    status, _, error = run("generate", *base, *(word.replace("{trained}", str(trained)) for word in overrides))
    assert status == 2
    assert said in error
    assert len(error.splitlines()) == 1
    assert not os.listdir(tmp_path)


def test_other_settings_have_another_output_and_the_same_ones_go_on(run: Runner, trained: Path, tmp_path: Path) -> None:
    pattern = f"output={tmp_path / 'x-{settings}.jsonl'}"
    words = [f"denoiser={trained / 'denoiser'}", "energy=null", pattern, "num_samples=2", "threads=1"]
    assert run("generate", *words, "num_steps=2")[0] == run("generate", *words, "num_steps=3")[0] == 0
    assert len(list(tmp_path.glob("x-????????.jsonl"))) == len(os.listdir(tmp_path)) == 2, "and no lock is left"
    status, shown, _ = run("generate", *words, "num_steps=2")
    assert (status, "holds 2 texts of these settings already; overwrite=true draws them anew" in shown) == (0, True)
    status, _, error = run("generate", *words, "num_steps=2", "num_samples=3")
    assert status == 0, error
    assert sorted(len(path.read_text().splitlines()) for path in tmp_path.iterdir()) == [2, 3]


def test_texts_are_replaced_where_that_is_asked_for(run: Runner, trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    words = [f"denoiser={trained / 'denoiser'}", "energy=null", f"output={output}", "num_steps=2", "threads=1"]
    assert run("generate", *words, "num_samples=2")[0] == 0
    first = output.read_text()
    status, _, error = run("generate", *words, "num_samples=1", "seed=1")
    assert (status, "choose another name, or overwrite=true replaces them" in error) == (2, True)
    assert output.read_text() == first
    assert run("generate", *words, "num_samples=1", "seed=1", "overwrite=true")[0] == 0
    assert [json.loads(line)["seed"] for line in output.read_text().splitlines()] == [1]


def test_a_prompt_on_the_command_line_is_taken_as_it_is(run: Runner, trained: Path, tmp_path: Path) -> None:
    words = [f"denoiser={trained / 'denoiser'}", "energy=null", f"output={tmp_path / 'x.jsonl'}", "num_samples=1"]
    status, _, error = run("generate", *words, "num_steps=2", "prompt=  yes __ = no ")
    assert (status, "'=' at offset 1" in error) == (2, True), error
    assert run("generate", *words, "num_steps=2", "prompt=  yes __ no ")[0] == 0
    text = json.loads((tmp_path / "x.jsonl").read_text())["text"]
    assert (text[:6], text[8:12]) == ("  yes ", " no ")
    for prompt in ("#1", "42", "ROMEO: x"):
        status, _, error = run("generate", *words, f"prompt={prompt}", "overwrite=true")
        assert (status, f"character {prompt[0]!r} at offset 0 is not in the vocabulary" in error) == (2, True), error


def test_a_literal_underscore_has_a_way() -> None:
    words = vocabulary.characters("ab_\\")
    assert words.encode_prompt(r"a_\_b\a").tolist() == [0, words.mask_id, 2, 1, 3, 0]
    for text in ("", "a", r"a\b", "ab"):
        assert torch.equal(words.encode_prompt(text), words.encode(text))


def test_a_prompt_has_a_mask_for_every_underscore() -> None:
    characters = vocabulary.characters()
    tokens = characters.encode_prompt("_ab__ c_")
    assert tokens.tolist() == [27, 0, 1, 27, 27, 26, 2, 27]
    assert characters.decode(tokens) == "_ab__ c_"
