"""What a plan hands to the objective that it trains by, what it keeps for a run that goes on, and its last words."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from edlm.data import corpora, vocabulary
from edlm.data.pieces import Blocks
from edlm.models import energies
from edlm.nn.pretrained import VocabularyHead
from edlm.objectives import blocks, contrastive, denoising, distillation, drafting, joint, losses, transition
from edlm.process import schedules
from edlm.runs import processes
from edlm.training import adaptation, autoregression, denoiser, energy, kinds, settings, vocabularies
from edlm.training import distillation as rounds
from edlm.training import start as starts
from edlm.weights import checkpoints, loading

WORDS = vocabulary.characters("abcd", specials=["bos", "pad"])
SCHEDULE = schedules.cosine()
NETWORK = nn.Linear(2, 2)


def called(*given: Any, **more: Any) -> Any:
    """What a stand-in for a builder was given."""
    return given, more


# ---- Objectives


class Start(SimpleNamespace):
    """A denoiser that was loaded: its network, its vocabulary, and what its folder says."""

    network, vocabulary, schedule, told, pad_id = NETWORK, WORDS, SCHEDULE, None, 7
    denoiser, weights, path = "the denoiser", "0a1b", "folder"
    description: dict[str, Any] = {"schedule": {"a": 1}, "time_conditioning": False, "step": 5}  # noqa: RUF012


ENERGY = {
    **{"scope": "draft", "transition_steps": [2, 8], "objective": "info_nce", "num_negatives": 3, "time_low": 0.25},
    **{"start_from": "denoiser", "embedding": "own", "dropout": 0.5, "ar_form": "posterior"},
    **{"length": None, "tokenizer": None, "trunk": "trained", "lora": None},
}
CORPUS = SimpleNamespace(fingerprint="corpus")


def plan_of(**changes: Any) -> energy.EnergyPlan:
    return energy.EnergyPlan(Start(), {**ENERGY, **changes})  # type: ignore[arg-type]


def test_an_energy_is_contrasted_with_draws_of_its_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "contrastive", called)
    monkeypatch.setattr(transition, "contrastive", called)
    monkeypatch.setattr(energy.EnergyPlan, "energy", lambda _, network: ("energy of", network))
    parts = "the denoiser", ("energy of", NETWORK), SCHEDULE
    assert plan_of().stages(NETWORK, 9) == ((*parts, 9, 0.25, losses.info_nce, 7), {})
    of_steps = plan_of(scope="transition", objective="nce")
    assert of_steps.stages(NETWORK, 9) == ((*parts, (2, 8), 9, losses.nce, 7), {})


@pytest.mark.parametrize("form", ["posterior", "carry_over"])
def test_the_energy_of_an_ar_model_is_its_residual_one(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energies, "residual_ar", called)
    ar = energy.TrainedAr(NETWORK, 4, "ffff", checkpoints.OWN)
    plan = plan_of(ar_form=form)._replace(ar=ar)
    assert plan.energy(NETWORK) == ((NETWORK, WORDS.mask_id, 4, form == "carry_over", 7), {})
    assert (plan.network(), plan.form, plan.called) == (NETWORK, checkpoints.OWN, form)
    assert plan.notes(CORPUS).items() >= {"ar_form": form, "ar_weights": "ffff", "bos_id": 4}.items()


def test_tables_call_an_energy_of_drafts_learned() -> None:
    assert [plan_of(scope=scope).called for scope in ("draft", "transition")] == ["learned", "transition"]


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, {}),
        ({"scope": "transition"}, {"scope": "transition", "transition_steps": [2, 8]}),
        ({"embedding": "shared"}, {"embedding": "shared"}),
        ({"trunk": "frozen", "lora": {"rank": 2}}, {"trunk": "frozen", "lora": {"rank": 2}}),
        ({"length": 9, "tokenizer": "t"}, {"length": 9, "tokenizer": "t"}),
    ],
)
def test_an_energy_keeps_what_it_was_trained_by_where_it_is_not_the_usual(
    changes: dict[str, Any], more: dict[str, Any]
) -> None:
    assert plan_of(**changes).notes(CORPUS) == {
        **{"objective": "info_nce", "num_negatives": 3, "start_from": "denoiser", "dropout": 0.5, "corpus": "corpus"},
        **{"schedule": {"a": 1}, "time_conditioning": False, "denoiser_step": 5, "denoiser_weights": "0a1b"},
        **more,
    }


JOINT = {
    **{"transition_steps": [2, 8], "objective": "nce", "num_negatives": 3, "nelbo_weight": 0.75, "energy_weight": 0.5},
    **{"num_energy_layers": 2, "denoiser_rate": 0.1, "dropout": 0.25},
}


def test_a_joint_network_is_trained_by_both_losses_with_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "contrastive", called)
    monkeypatch.setattr(energy.JointPlan, "denoiser", lambda _, network: ("denoiser of", network))
    plan = energy.JointPlan(Start(), JOINT)  # type: ignore[arg-type]
    given = (("denoiser of", NETWORK), SCHEDULE, (2, 8), 9, 0.75, 0.5, losses.nce, WORDS.pad_id)
    assert plan.stages(NETWORK, 9) == (given, {})
    assert plan.notes(CORPUS) == {
        **JOINT,
        **{"corpus": "corpus", "schedule": {"a": 1}, "time_conditioning": False, "denoiser_step": 5},
        **{"denoiser_weights": "0a1b", "scope": "transition"},
    }


@pytest.mark.parametrize("particles", [2, 5])
def test_held_out_draws_are_as_many_as_training_or_the_report_takes(
    particles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    stages = SimpleNamespace(eval=lambda: "stages")
    monkeypatch.setattr(energy.contrast, "held_out", lambda *given, **more: (*given, more))
    for plan, only_new in ((energy.EnergyPlan, False), (energy.JointPlan, True)):
        monkeypatch.setattr(plan, "stages", lambda _, network, number: asked.append((network, number)) or stages)
        own = {**ENERGY, "report_particles": particles}
        found = energy.held_out(plan(Start(), own), NETWORK, "drawn")  # type: ignore[arg-type]
        assert found == ("stages", "drawn", own, {"only_new": only_new})
    assert asked == [(NETWORK, max(particles, 3))] * 2


ROUNDS = {"num_steps": 64, "at_once": 4, "rounds": 2, "divergence": "tvd", "time_low": 0.25}


def test_a_round_of_distillation_has_its_own_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "distillation", called)
    monkeypatch.setattr(rounds.DistillationPlan, "denoiser", lambda _, network: network)
    plan, teacher = rounds.DistillationPlan(Start(), ROUNDS), nn.Linear(1, 1)  # type: ignore[arg-type]
    for number, steps in ((0, 64.0), (1, 16.0), (2, 4.0)):
        given = (NETWORK, teacher, SCHEDULE, steps, 4, "tvd", 0.25, WORDS.pad_id)
        assert plan.stages(NETWORK, teacher, number) == (given, {})
    assert plan.notes(CORPUS, 1) == {
        **{"schedule": {"a": 1}, "time_conditioning": False, "objective": "distillation, tvd", "corpus": "corpus"},
        **{"denoiser_weights": "0a1b", "round": 1, "rounds": 2, "num_steps": 64, "at_once": 4},
    }
    copied = plan.student(nn.Linear(2, 2).requires_grad_(False))
    assert all(each.requires_grad for each in copied.parameters())


@pytest.mark.parametrize(("steps", "right"), [(16, True), (15, False)])
def test_rounds_put_no_more_steps_together_than_there_are(steps: int, right: bool) -> None:
    given = {**ROUNDS, "num_steps": steps}
    if right:
        rounds.check(given)
        return
    said = "rounds = 2 with at_once = 4 put 16 steps into one: num_steps = 15 must be at least as many"
    with pytest.raises(ValueError, match=f"^{said}$"):
        rounds.check(given)


def test_an_adapted_model_learns_by_count_in_its_blocks_where_it_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    read = SimpleNamespace(block_size=None)
    monkeypatch.setattr(blocks, "denoising", called)
    monkeypatch.setattr(denoising, "denoising", called)
    monkeypatch.setattr(adaptation.Plan, "denoiser", lambda *_: read)
    own = {"length": 9, "shifted": True, "lora": None, "opening_steps": 5}
    plan = adaptation.Plan(NETWORK, WORDS, 7, checkpoints.OWN, "0a1b", own)
    (model, schedule), how = plan.stages(NETWORK)
    assert (model, repr(schedule)) == (read, repr(schedules.log_linear()))
    assert how == {"pad_id": 7, "noise_levels": "by_count", "opening_steps": 5}
    notes = {"objective": "nelbo", "schedule": {"_component_": "edlm.schedules.log_linear"}, "corpus": "corpus"}
    notes |= {"time_conditioning": False, "start_from": "0a1b", **own}
    assert plan.notes(CORPUS) == notes
    plain = plan._replace(settings={**own, "opening_steps": None})
    assert plain.notes(CORPUS) == {key: value for key, value in notes.items() if key != "opening_steps"}
    read.block_size = 4
    (model, _, *others), how = plan.stages(NETWORK)
    assert (model, others, how) == (read, [(0.0, 1.0), "by_count", 7], {})
    assert plan.notes(CORPUS)["objective"] == "nelbo of blocks"


def test_bytes_are_counted_over_the_blocks_that_are_asked_for() -> None:
    plan = adaptation.Plan(NETWORK, vocabulary.characters("aé"), None, checkpoints.OWN, "", {})
    rows = torch.tensor([[0, 1], [1, 1], [0, 0]])  # of 3, 4 and 2 bytes
    assert [plan.bytes_per_token(rows, count) for count in (1, 2, 3, 9)] == [3 / 2, 7 / 4, 9 / 6, 9 / 6]


def test_a_token_that_is_never_drawn_is_named_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    head = VocabularyHead.__new__(VocabularyHead)
    nn.Module.__init__(head)
    monkeypatch.setattr(VocabularyHead, "is_plain", False, raising=False)
    head.barred = torch.tensor([False, False, True, False])
    network: Any = SimpleNamespace(head=head)
    plan = adaptation.Plan(network, vocabulary.characters("abc"), None, checkpoints.OWN, "", {})
    fine = torch.tensor([[0, 1], [1, 3], [1, 0]])
    plan.require_possible(Blocks(fine, fine, fine))
    monkeypatch.setattr(adaptation, "_ROWS", 2)
    for name, row in itertools.product(("train", "valid", "test"), range(3)):
        split = Blocks(fine, fine, fine)._replace(**{name: fine.index_fill(0, torch.tensor(row), 2)})
        said = f"corpus: a text of {name} holds 'c', a token that the model never draws"
        with pytest.raises(ValueError, match=f"^{said}$"):
            plan.require_possible(split)


@pytest.mark.parametrize("drafts", [None, {"ahead": 4, "every": 2}])
def test_an_ar_model_is_trained_by_its_likelihood_and_by_drafts_if_asked(
    drafts: dict[str, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denoising, "next_token", called)
    monkeypatch.setattr(drafting, "next_token", called)
    split = Blocks(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 2))
    plan = autoregression.Plan(NETWORK, WORDS, 4, 7, split, checkpoints.OWN, {}, {"drafts": drafts})
    exact = (NETWORK, WORDS.mask_id, 4, 7), {}
    assert plan.exact(NETWORK) == exact
    with_drafts = (NETWORK, WORDS.mask_id, 4), {"ahead": 4, "every": 2, "pad_id": 7}
    assert plan.stages(NETWORK) == (exact if drafts is None else with_drafts)


@pytest.mark.parametrize(("rows", "name"), [((1, 2, 2), None), ((9, 1, 2), "valid"), ((9, 2, 1), "test")])
def test_held_out_blocks_are_two_at_least(
    rows: tuple[int, int, int], name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = Blocks(*(torch.zeros(each, 4) for each in rows))
    monkeypatch.setattr(corpora, "load_blocks", lambda *given: split if given == (CORPUS, WORDS, 4) else None)
    if name is None:
        assert autoregression._blocks({"length": 4}, CORPUS, WORDS) is split  # type: ignore[arg-type]
        return
    said = f"length = 4: {name} has one block so long, and an error needs two"
    with pytest.raises(ValueError, match=f"^{said}$"):
        autoregression._blocks({"length": 4}, CORPUS, WORDS)  # type: ignore[arg-type]


def test_a_text_begins_with_bos_or_with_the_mask() -> None:
    assert autoregression.start_id(WORDS) == WORDS.bos_id != WORDS.mask_id
    plain = vocabulary.characters("ab")
    assert autoregression.start_id(plain) == plain.mask_id


DENOISER = {
    **{"objective": "mdlm", "loss_steps": None, "schedule": {"a": 1}, "time_conditioning": True, "length": 8},
    **{"network": {"b": 2}, "padding": "ignored", "seed": 3},
}


@pytest.mark.parametrize("wrapped", [True, False, None])
def test_a_denoiser_keeps_what_a_reader_needs(wrapped: bool | None) -> None:
    corpus = SimpleNamespace(fingerprint="corpus", **({} if wrapped is None else {"wrapped": wrapped}))
    plan = denoiser.Plan(kinds.OBJECTIVES["mdlm"], SCHEDULE, WORDS, DENOISER)
    fine = torch.zeros(2, 8, dtype=torch.int64)
    assert plan.notes(corpus, Blocks(fine, fine, fine)) == {
        **{key: DENOISER[key] for key in ("schedule", "time_conditioning", "network", "length")},
        **{"objective": "nelbo", "corpus": "corpus"},
        **({"wrapped": True} if wrapped else {}),
    }
    padded = fine.clone()
    padded[1, 7] = WORDS.pad_id or 0
    assert plan.notes(corpus, Blocks(fine, fine, padded))["padding"] == "ignored"
    assert plan.told is SCHEDULE
    assert plan._replace(settings={**DENOISER, "time_conditioning": False}).told is None


# ---- Before and after


@pytest.mark.parametrize(("world", "among"), [(1, ""), (3, "3 processes x ")])
def test_every_process_and_part_has_a_row(world: int, among: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "world", lambda: world)
    settings.require_rows({"batch_size": 2 * world, "accumulate": 2})
    said = f"batch_size = {2 * world - 1} must be at least {among}accumulate = 2"
    with pytest.raises(ValueError, match=f"^{said}$"):
        settings.require_rows({"batch_size": 2 * world - 1, "accumulate": 2})


def learned(documents: Any, size: int = 3) -> Any:
    """A vocabulary that is learned, which says of what."""
    return SimpleNamespace(encode_documents=list(documents), mask_id=0, size=size)


def test_a_vocabulary_is_learned_from_the_training_split_alone() -> None:
    class Corpus:
        train, asked = ("a", "b"), 0

    class Never:
        @property
        def train(self) -> list[str]:
            raise AssertionError

    section = {"_component_": f"{__name__}.learned", "size": 5}
    found: Any = vocabularies.build({"vocabulary": section, "padding": "ignored"}, Corpus())  # type: ignore[arg-type]
    assert (found.encode_documents, found.size) == (["a", "b"], 5)
    plain = {"_component_": "edlm.vocabulary.characters", "alphabet": "ab"}
    assert vocabularies.build({"vocabulary": plain, "padding": "ignored"}, Never()).size == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("trunk", "lora", "precision"),
    [("frozen", None, None), ("frozen", {"rank": 1}, "float32"), ("trained", None, "float32")],
)
def test_a_large_start_is_float32_unless_nothing_of_it_takes_a_gradient(
    trunk: str, lora: Any, precision: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checked: list[Any] = []
    monkeypatch.setattr(loading, "is_large", lambda path: path == "big")
    monkeypatch.setattr(loading, "large_start", called)
    monkeypatch.setattr(starts.large, "hub_folder", lambda path: f"newest of {path}")
    monkeypatch.setattr(energy, "check", lambda *given, ours: checked.append((*given, ours)))
    own = {"denoiser": "big", "pretrain": None, "trunk": trunk, "lora": lora, "length": 9, "tokenizer": "t"}
    device = torch.device("cpu")
    found: Any = starts.load(own, device, lambda _: None)
    assert found == (("big", 9, "t", precision, device), {})
    assert checked == [(own, "big", False)]
    assert capsys.readouterr().out == "denoiser: newest of big\n"


@pytest.mark.parametrize("warning", [None, "warning: beware"])
def test_the_end_of_an_energys_training_is_written_and_shown(
    warning: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [{"row": 0, "energy": "on", "text": "abc"}, {"row": 1, "energy": "off", "text": "d"}]
    own, told = {"seed": 3, "denoiser": "folder"}, {"loss": 1.5, "warning": warning}
    energy.conclude(tmp_path, own, told, ["a table", "another"], ("energy", "started from"), texts)
    assert json.loads((tmp_path / "report.json").read_text()) == {"settings": own, **told}
    assert [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()] == texts
    assert capsys.readouterr().out == (
        "\nheld-out text (test split, seed 3):\na table\n\nanother\n"
        f"{'' if warning is None else '  warning: beware'}{'' if warning is None else chr(10)}"
        "\n  sample 0, energy on:\n    abc\n\n  sample 1, energy off:\n    d\n"
        f"\n  energy, figures and log: {tmp_path}\n  started from: folder\n"
    )
    (tmp_path / "samples.jsonl").unlink()
    energy.conclude(tmp_path, own, told, [], ("energy", "denoiser"))
    assert not (tmp_path / "samples.jsonl").exists()


def test_an_ar_network_of_ours_is_causal_and_told_no_time_unless_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    split = Blocks(torch.zeros(2, 8), torch.zeros(2, 8), torch.zeros(2, 8))
    monkeypatch.setattr(vocabularies, "build", lambda *_: WORDS)
    monkeypatch.setattr(autoregression, "_blocks", lambda *_: split)
    monkeypatch.setattr(autoregression.schemas, "build", called)
    for network in ({"_component_": "a"}, {"_component_": "a", "conditioning_size": 4}):
        own = {"network": network, "length": 8, "padding": "read", "seed": 3, "drafts": {"ahead": 2}}
        found = autoregression._of_ours(own, CORPUS)  # type: ignore[arg-type]
        sizes = {"vocab_size": WORDS.size, "max_length": 8, "causal": True}
        assert found.network == (({"conditioning_size": 0, **network}, "network"), sizes)
        assert found.identity == {
            **{"objective": "next_token", "corpus": "corpus", "bos_id": WORDS.bos_id, "length": 8},
            **{"network": network, "drafts": {"ahead": 2}},
        }
        assert torch.initial_seed() == 3


@pytest.mark.parametrize(
    ("report", "picture", "has"),
    [
        ('{"step": 4}', True, True),
        ('{"step": 5}', True, False),
        ("{", True, False),
        (None, True, False),
        ('{"step": 4}', False, False),
    ],
)
def test_a_denoiser_is_finished_with_the_report_of_its_last_step_and_its_picture(
    report: str | None, picture: bool, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "last_checkpoint", lambda path: Path(path) / "step_00000004")
    monkeypatch.setattr(starts.state, "load", lambda folder: {"step": int(folder.name[5:]), "settings": {"steps": 4}})
    if report is not None:
        (tmp_path / "report.json").write_text(report)
    if picture:
        (tmp_path / "curves.png").write_text("")
    assert starts._has_report(str(tmp_path)) is has
    assert starts._has_own_steps(str(tmp_path))
    assert [starts._has_steps(str(tmp_path), steps) for steps in (3, 4, 5)] == [True, True, False]
