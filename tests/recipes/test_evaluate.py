"""The recipe `evaluate`: its figures are those of the library, every text counts, and limits are said with them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from builders import tiny_network
from evaluated import ABC, LENGTH, TEXT, card_of, words, write
from running import Runner

from edlm.data import corpora, pieces, vocabulary
from edlm.evaluation import texts as text_sets
from edlm.likelihood import estimates, paper_nelbo
from edlm.models import autoregressive, chain_rule, denoisers, energies, joint
from edlm.nn import folding
from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer
from edlm.process import absorbing, noise, schedules
from edlm.process.noise import Stream
from edlm.weights import checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser, an energy, an AR model and two texts."""
    return write(tmp_path_factory.mktemp("models"))


@pytest.fixture
def run(folder: Path, tmp_path: Path, run: Runner) -> Callable[..., tuple[int, str, str, dict[str, Any]]]:
    """Run the recipe in this process: exit status, output, our lines of standard error, and the card."""

    def call(*overrides: str) -> tuple[int, str, str, dict[str, Any]]:
        ran = run("evaluate", *words(folder, tmp_path / "out", overrides))
        return *ran, card_of(tmp_path / "out")

    return call


def by_name(card: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(figure["model"], figure["figure"]): figure for figure in card["figures"]}


def test_the_likelihood_of_an_ar_model_is_that_of_the_whole_text(run, folder: Path) -> None:
    """Every token once, the last partial excerpt and the last partial batch too, at any batch size."""
    network = checkpoints.load_as(Transformer, folder / "ar")
    excerpts = pieces.excerpts([TEXT], ABC, LENGTH)
    with torch.no_grad():
        nats = sum(
            -autoregressive.ar_log_prob(network, e.tokens[None], ABC.mask_id, ABC.mask_id)[0, e.given :].double().sum()
            for e in excerpts
        )
    assert len(TEXT) % LENGTH != 0
    for batch_size in (2, 5):
        status, _, error, card = run("denoiser=null", "energy=null", f"batch_size={batch_size}")
        assert status == 0, error
        [figure] = card["figures"]
        assert figure["figure"] == "exact_nll"
        assert figure["nats_per_token"] == pytest.approx(float(nats) / len(TEXT), rel=1e-5)
        assert figure["n"] == len(excerpts)
        assert figure["bits_per_character"] == pytest.approx(figure["nats_per_token"] / math.log(2))
        assert figure["perplexity"] == pytest.approx(math.exp(figure["nats_per_token"]))
        assert figure["passes"] == {"ar": len(excerpts)}
        assert card["texts"][0]["tokens"] == card["texts"][0]["characters"] == len(TEXT)


def test_a_law_of_single_tokens_stands_beside_the_figures_of_a_corpus(run, folder: Path, tmp_path: Path) -> None:
    """Each token counts once more than it occurs in the training text; foreign texts alone have no such law."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split, text in (("train", "aab"), ("valid", "abc abc "), ("test", "abca cab")):
        (corpus / f"{split}.txt").write_text(text, encoding="utf-8")
    own = ["denoiser=null", "energy=null", f"corpus.path={corpus}", "corpus._component_=edlm.corpora.text_files"]
    status, shown, error, _ = run(*own, "split=test", "zero_shot=[]", "length=4")
    assert status == 0, error
    chances = {"a": 3 / 7, "b": 2 / 7, "c": 1 / 7, " ": 1 / 7}
    bits = -sum(math.log2(chances[letter]) for letter in "abca cab") / 8
    assert f"a law of single tokens, of the training text: {bits:.4f} bits/character" in shown
    assert "single tokens" not in run("denoiser=null", "energy=null")[1]


def test_every_model_gets_its_figures_and_the_papers_never_without_the_warning(
    run, folder: Path, tmp_path: Path
) -> None:
    status, shown, error, card = run("rows=6", "batch_size=4", "num_passes=null")
    assert status == 0, error
    found = by_name(card)
    paper = ["paper_nelbo, log Z low", "paper_nelbo, log Z high"]
    energies_shown = ["energy", "ar, posterior", "ar, carry_over"]
    expected = [("denoiser", "nelbo"), ("denoiser", "t_step_nelbo")]
    expected += [("chain_rule", "transition_nelbo"), ("speculative", "transition_nelbo")]
    expected += [(model, name) for model in energies_shown for name in ("sampler_nelbo", *paper)]
    assert list(found) == [*expected, ("ar", "exact_nll")]
    assert paper_nelbo.WARNING in shown
    assert "seed 0, networks float32, sums float64" in shown
    assert "bounds of the sampler with T=4, k=3, m=2, t in [0.4, 1]; log Z of 3 drafts" in shown
    [said] = card["findings"]
    assert "no correction is told apart from plain within the error; " in said
    assert said.endswith("; 6 texts are too few for a verdict")
    assert f"O{said[1:]}. all columns: " in " ".join(shown.split())
    whole = (tmp_path / "out" / "figures.md").read_text("utf-8")
    assert "| passes/text | seconds |" in whole
    assert all(f"| {line.split('  ')[0].strip()} |" in whole for line in shown.splitlines() if "nelbo  " in line)
    for (model, name), figure in found.items():
        assert (figure.get("warning") == paper_nelbo.WARNING) == name.startswith("paper")
        assert figure["n"] == 6
        assert f"{model}: {name}" in shown
        assert figure["seconds"] > 0
    assert found["denoiser", "nelbo"]["passes"] == {"denoiser": 6}
    assert found["energy", paper[0]]["passes"] == {"denoiser": 6, "energy": 6 * 4}
    assert found["energy", "sampler_nelbo"]["ess"] > 1.0
    excess = found["energy", "sampler_nelbo"]["excess_nats"]
    plain = found["denoiser", "t_step_nelbo"]["nats_per_token"]
    assert found["energy", "sampler_nelbo"]["nats_per_token"] - excess == pytest.approx(plain, rel=1e-5)

    network = folding.fold_conditioning(checkpoints.load_as(Transformer, folder / "denoiser"))
    denoiser = denoisers.subs(network, ABC.mask_id)
    learned = energies.learned(folding.fold_conditioning(checkpoints.load_as(EnergyNetwork, folder / "energy")))
    ar = folding.fold_conditioning(checkpoints.load_as(Transformer, folder / "ar"))
    posterior, carry_over = (energies.residual_ar(ar, ABC.mask_id, ABC.mask_id, form) for form in (False, True))
    texts = pieces.excerpts([TEXT], ABC, LENGTH)
    x_0 = torch.stack([texts[number * len(texts) // 6].tokens for number in range(6)])
    keys = schedules.log_linear(), schedules.uniform_grid(4), x_0, torch.tensor(0), torch.arange(6)
    options = {"num_particles": 3, "num_completions": 2, "window": (0.4, 1.0)}
    for model, energy in zip(energies_shown, (learned, posterior, carry_over), strict=True):
        bound = builders.draft_bound(denoiser, energy, *keys, **options)
        estimate = estimates.estimate(bound.nats)
        assert found[model, "sampler_nelbo"]["nats_per_token"] == pytest.approx(estimate.mean, rel=1e-5)
        assert found[model, "sampler_nelbo"]["nats_error"] == pytest.approx(estimate.standard_error, rel=1e-5)


def test_an_energy_of_transitions_has_a_bound_of_its_own(run, folder: Path) -> None:
    at = f"transition={folder / 'transition'}"
    status, shown, error, card = run("rows=6", "batch_size=4", "num_passes=null", at, "energy=null", "ar=null")
    assert status == 0, error
    found = by_name(card)["transition", "transition_nelbo"]
    assert "transition: transition_nelbo" in shown
    denoiser = denoisers.subs(
        folding.fold_conditioning(checkpoints.load_as(Transformer, folder / "denoiser")), ABC.mask_id
    )
    network = folding.fold_conditioning(checkpoints.load_as(EnergyNetwork, folder / "transition"))
    texts = pieces.excerpts([TEXT], ABC, LENGTH)
    x_0 = torch.stack([texts[number * len(texts) // 6].tokens for number in range(6)])
    keys = schedules.log_linear(), schedules.uniform_grid(4), x_0, torch.tensor(0), torch.arange(6)
    energy = energies.learned_transition(network)
    bound = builders.transition_bound(denoiser, energy, *keys, num_particles=3, window=(0.4, 1.0))
    estimate = estimates.estimate(bound.nats)
    assert found["nats_per_token"] == pytest.approx(estimate.mean, rel=1e-5)
    assert found["excess_nats"] == pytest.approx(float(bound.excess.mean()), rel=1e-4)
    plain = by_name(card)["denoiser", "t_step_nelbo"]["nats_per_token"]
    assert found["nats_per_token"] - found["excess_nats"] == pytest.approx(plain, rel=1e-5)
    assert found["nats_per_token"] != pytest.approx(plain, rel=1e-3)


def test_a_denoiser_is_bounded_with_the_energy_that_it_has_in_itself(run, folder: Path) -> None:
    """Its passes are those over x_t, once more than the denoiser's, and new tokens but the first, twice in k texts."""
    status, shown, error, card = run("rows=6", "batch_size=4", "num_passes=null", "energy=null", "ar=null")
    assert status == 0, error
    found = by_name(card)["chain_rule", "transition_nelbo"]
    assert "chain_rule: transition_nelbo" in shown
    network = folding.fold_conditioning(checkpoints.load_as(Transformer, folder / "denoiser"))
    denoiser = denoisers.subs(network, ABC.mask_id)
    texts = pieces.excerpts([TEXT], ABC, LENGTH)
    x_0 = torch.stack([texts[number * len(texts) // 6].tokens for number in range(6)])
    grid, keys = schedules.uniform_grid(4), (torch.tensor(0), torch.arange(6))
    parts = denoiser, chain_rule.energy(denoiser), schedules.log_linear(), grid, x_0
    bound = builders.transition_bound(*parts, *keys, num_particles=3, window=(0.4, 1.0))
    assert found["nats_per_token"] == pytest.approx(float(bound.nats.mean()), rel=1e-5)
    assert found["excess_nats"] == pytest.approx(float(bound.excess.mean()), rel=1e-4)
    assert abs(found["excess_nats"]) > 1e-3
    uniforms = noise.grid(*keys, 0, Stream.EVALUATION, LENGTH)
    plan = absorbing.reveal_plan(uniforms, torch.ones_like(x_0, dtype=torch.bool), schedules.log_linear(), grid)
    passes = 0.0
    for order, starts in zip(plan.order.tolist(), plan.t.tolist(), strict=True):
        for number in set(order):
            passes += (1 + 3 * 2 * (order.count(number) - 1) / LENGTH) * (starts[number] >= 0.4)
    assert found["passes"]["energy"] == pytest.approx(passes)
    assert passes == pytest.approx(float(bound.energy_passes.sum()))
    limit = builders.transition_bound(*parts, *keys, num_particles=None, window=(0.4, 1.0))
    written = by_name(card)["speculative", "transition_nelbo"]
    assert written["nats_per_token"] == pytest.approx(float(limit.nats.mean()), rel=1e-5)
    assert written["passes"]["energy"] < found["passes"]["energy"]
    hot = run("rows=2", "energy=null", "ar=null", "energy_temperature=2.0")[3]
    assert ("speculative", "transition_nelbo") not in by_name(hot)
    assert not any(model == "chain_rule" for model, _ in by_name(run(f"denoiser={folder / 'joint'}", "rows=2")[3]))


def test_a_joint_network_has_the_bounds_of_its_denoiser_and_of_its_own_sampler(run, folder: Path) -> None:
    at = ["denoiser=null", "energy=null", "ar=null", f"joint={folder / 'joint'}"]
    status, _, error, card = run("rows=6", "batch_size=4", "num_passes=null", *at)
    assert status == 0, error
    found = by_name(card)
    assert list(found) == [("joint", name) for name in ("nelbo", "t_step_nelbo", "transition_nelbo")]
    network = checkpoints.load_as(JointNetwork, folder / "joint").eval()
    texts = pieces.excerpts([TEXT], ABC, LENGTH)
    x_0 = torch.stack([texts[number * len(texts) // 6].tokens for number in range(6)])
    keys = schedules.log_linear(), schedules.uniform_grid(4), x_0, torch.tensor(0), torch.arange(6)
    denoiser = denoisers.subs(network, ABC.mask_id)
    options = {"num_particles": 3, "window": (0.4, 1.0)}
    bound = estimates.estimate(builders.transition_bound(denoiser, joint.energy(network), *keys, **options).nats)
    plain = estimates.estimate(builders.plain_bound(denoiser, *keys).nats)
    assert found["joint", "transition_nelbo"]["nats_per_token"] == pytest.approx(bound.mean, rel=1e-4)
    assert found["joint", "t_step_nelbo"]["nats_per_token"] == pytest.approx(plain.mean, rel=1e-4)
    assert bound.mean != pytest.approx(plain.mean, rel=1e-3)
    status, _, error, _ = run(f"joint={folder / 'denoiser'}")
    assert status == 2
    assert "holds a network with one head: `edlm run edlm_joint` trains one with two" in error


def test_foreign_texts_share_one_table_and_short_documents_stand_alone(run, folder: Path) -> None:
    sets = f"zero_shot=[{folder / 'one.txt'},{folder / 'two.txt'}]"
    status, shown, error, card = run(sets, "documents=separate", "energy=null", "ar=null", "context=2")
    assert status == 0, error
    assert "all sets of texts:" in shown
    one, two = card["texts"]
    assert two["documents"] == 3
    assert two["excerpts"] == 4, "cab, the two excerpts of abc abc abc, b"
    assert two["tokens"] == len("cab") + len("abc abc abc") + len("b")
    assert one["fingerprint"] != two["fingerprint"]
    assert [figure["texts"] for figure in card["figures"]] == 4 * [one["name"]] + 4 * [two["name"]]


NAMED = {
    "ptb/ptb.valid.txt": "abc cab \n\nbca <unk> abc \n" * 4,
    "wikitext2/wiki.valid.raw": " = abc = \n \n abc , cab . \n" * 4,
    "lm1b/heldout/news.en.heldout-00000-of-00050": "abc cab .\nabc , c ab .\n" * 4,
    "lambada/lambada_test.jsonl": '{"text": "abc “cab” bca"}\n' * 4,
    "ag_news/test.csv": '"1","abc","cab bca"\n' * 4,
    "pubmed/val.txt": '{"article_text": ["abc cab", "bca ( abc )"]}\n' * 4,
    "arxiv/validation/0.jsonl": '{"article": "abc cab", "abstract": "x"}\n' * 4,
}


def test_the_papers_sets_are_read_by_name_in_one_call(run, folder: Path, tmp_path: Path) -> None:
    for file, content in NAMED.items():
        (tmp_path / "sets" / file).parent.mkdir(parents=True)
        (tmp_path / "sets" / file).write_text(content, encoding="utf-8")
    names = [file.split("/")[0] for file in NAMED]
    sets = [f"zero_shot=[{','.join([*names, 'ptb:valid'])}]", f"zero_shot_files={tmp_path / 'sets'}"]
    status, _, error, card = run(*sets, "normalised=true", "energy=null", "ar=null", "length=8")
    assert status == 0, error
    assert [texts["name"] for texts in card["texts"]] == [*names, "ptb:valid"]
    assert {texts["name"]: texts["documents"] for texts in card["texts"]} == {
        "ptb": 8, "wikitext2": 8, "lm1b": 8, "lambada": 4, "ag_news": 4, "pubmed": 4, "arxiv": 4, "ptb:valid": 8,
    }  # fmt: skip
    characters = {texts["name"]: texts["characters"] for texts in card["texts"]}
    assert characters["ptb"] == len(" ".join(["abc cab", "bca abc"] * 4))
    table = (tmp_path / "out" / "perplexities.md").read_text("utf-8").splitlines()
    assert table[-1].startswith("bounds of the sampler with T=4, k=3")
    assert table[0] == "| perplexity | " + " | ".join([*names, "ptb:valid"]) + " |"
    assert table[1] == "|---|" + "---|" * (len(names) + 1)
    assert [line.split(" | ")[0] for line in table[2:4]] == ["| denoiser: nelbo", "| denoiser: t_step_nelbo"]
    by_set = {figure["texts"]: figure for figure in card["figures"] if figure["figure"] == "nelbo"}
    assert table[2].split(" | ")[1] == f"{by_set['ptb']['perplexity']:.4g}"


def test_a_component_is_read_by_the_split_that_is_published_or_by_its_test_split(folder: Path, tmp_path: Path) -> None:
    for split in ("valid", "test"):
        (tmp_path / f"ptb.{split}.txt").write_text(f"of {split} \n")
    ptb = {"_component_": "edlm.datasets.named", "name": "ptb", "path": str(tmp_path)}
    assert text_sets.zero_shot(ptb, None, False) == ("ptb", ["of valid"])
    path = str(folder / "one.txt")
    own = {"_component_": "edlm.corpora.text_files", "path": path}
    assert text_sets.zero_shot(own, None, False) == (path, corpora.text_files(path).test)
    assert text_sets.zero_shot(path, None, False) == (path, [TEXT])


def test_excerpts_between_bos_and_eos_score_the_text_alone(run, folder: Path, tmp_path: Path) -> None:
    ids = vocabulary.characters("abc ", specials=["bos", "eos"])
    causal = tiny_network(2, ids.size, LENGTH, causal=True, conditioning_size=0).float()
    checkpoints.save_network(tmp_path / "special", causal, ids, {"bos_id": ids.bos_id})
    only = ("denoiser=null", "energy=null", f"ar={tmp_path / 'special'}", "wrapped=true")
    status, _, error, card = run(*only)
    assert status == 0, error
    network = folding.fold_conditioning(checkpoints.load_as(Transformer, tmp_path / "special"))
    nats = 0.0
    for excerpt in pieces.excerpts([TEXT], ids, LENGTH - 2):
        x_0 = torch.cat([torch.tensor([ids.bos_id]), excerpt.tokens, torch.tensor([ids.eos_id])])
        with torch.no_grad():
            log_p = autoregressive.ar_log_prob(network, x_0[None], ids.mask_id, ids.bos_id)[0]
        nats -= float(log_p[excerpt.given + 1 : -1].double().sum())
    [figure] = card["figures"]
    assert card["texts"][0]["tokens"] == card["texts"][0]["characters"] == len(TEXT)
    assert figure["nats_per_token"] == pytest.approx(nats / len(TEXT), rel=1e-5)
    status, _, error, _ = run("wrapped=true")
    assert status == 2
    assert "wrapped = True needs a vocabulary with a bos and an eos id" in error


def test_without_a_bos_the_first_token_is_given_to_every_model(run, folder: Path) -> None:
    status, _, error, card = run(f"ar={folder / 'without_bos'}", "energy=null", "rows=4")
    assert status == 0, error
    assert card["texts"][0]["tokens"] == 4 * (LENGTH - 1)
    assert {figure["n"] for figure in card["figures"]} == {4}


def test_the_card_says_what_is_needed_to_repeat_it(run, folder: Path) -> None:
    _, _, _, card = run("rows=2", "energy=null", "ar=null")
    assert card["settings"]["rows"] == 2
    assert card["settings"]["seed"] == 0
    assert card["networks"]["denoiser"]["description"]["step"] == 3
    assert len(card["networks"]["denoiser"]["weights_sha256"]) == 64
    assert set(card["versions"]) == {"edlm", "torch", "python"}
    assert card["vocabulary"] == ABC.fingerprint
    again = run("rows=2", "energy=null", "ar=null")[3]
    for figures in (card["figures"], again["figures"]):
        for figure in figures:
            del figure["seconds"]
    assert again == card


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["denoiser=null", "energy=null", "ar=null"], "denoiser, joint and ar are all null: name one of them, or more"),
        (["denoiser=null"], "needs a denoiser to correct"),
        (["ar={}/denoiser"], "holds a network that is not causal"),
        (["ar={}/other"], "were trained on different vocabularies"),
        (["denoiser={}/ar"], "holds a network that was not trained as a denoiser"),
        (["length=64"], "length = 64 must lie in 1..8"),
        (["context=8"], "one.txt: context = 8 must be at least 0 and below length = 8"),
        (["zero_shot=[]"], "there is nothing to evaluate"),
        (
            ["zero_shot=[/nowhere.txt]"],
            "zero_shot = '/nowhere.txt': no such file, and no data set; sets by name: text8",
        ),
        (["zero_shot=[pbt]"], "zero_shot = 'pbt': no such file, and no data set; did you mean 'ptb'?"),
        (["zero_shot=[{}/one.txt,{}/one.txt]"], "twice"),
        (["zero_shot=[ptb:last]"], "zero_shot = 'ptb:last': the split must be one of train, valid, test"),
        (["zero_shot=[ptb]", "zero_shot_files={}"], "ptb: no such file or folder"),
        (["zero_shot=[{_component_: edlm.datasets.named, name: ptb, paht: x}]"], "zero_shot[0].paht: unknown key"),
        (["judge={}/ar"], "has nothing to judge: name samples"),
        (["samples=/nowhere.jsonl"], "samples = '/nowhere.jsonl' cannot be read"),
        (["samples={}/one.txt"], "line 1 must be a json object with a text"),
        (["samples={}/short.jsonl"], "line 2 must hold a text of at least 4 tokens, whose repetition is counted"),
        (["samples={}/samples.jsonl", "judge={}/other"], "character ' ' at offset 1 is not in the vocabulary"),
        (["rows=1"], "rows = 1 must be a whole number of at least 2"),
        (["num_partcles=2"], "num_partcles: unknown key; did you mean 'num_particles'?"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(run, folder: Path, overrides: list[str], said: str) -> None:
    status, _, error, card = run(*(word.replace("{}", str(folder)) for word in overrides))
    assert status == 2
    assert said in error
    assert len(error.splitlines()) == 1
    assert not card
