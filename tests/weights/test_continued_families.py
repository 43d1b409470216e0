"""Denoisers of the hub whose training goes on: the law at the start, the folder, training, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import block_folders as blocks
import hub_folders as hub
import large_folders
import pytest
import torch
import torch.nn.functional as F
from interrupted import require_same_end
from large_folders import close
from smallest import settings_of, words_of
from torch import Tensor

from edlm.data import pieces, vocabulary
from edlm.objectives import batches
from edlm.recipes import generate
from edlm.recipes.adapt import Adapt, main
from edlm.training import log
from edlm.weights import adaptation, checkpoints, large, loading, shards, tensors, whole

transformers = pytest.importorskip("transformers", minversion="5", reason="needs pip install 'edlm-torch[families]'")
LENGTH, BOS = 10, large_folders.BOS
BUILT, IN_BLOCKS = ("llada", "dream"), ("sdar", "fast_dllm", "llada2")
KINDS = (*BUILT, *hub.MASKED, *IN_BLOCKS)
every_kind = pytest.mark.parametrize("kind", KINDS)
UPDATES = {
    **{"steps": 4, "batch_size": 4, "valid_every": 2, "valid_rows": 4, "save_every": 2, "log_every": 1},
    **{"length": LENGTH, "ema_decay": 0.5, "threads": 1, "corpus._component_": "edlm.corpora.text_files"},
}
LORA = "{rank: 2, alpha: 4.0}"


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "draw_curves", lambda _: None)


def folder_of(kind: str, folder: Path) -> Callable[[Tensor], Tensor]:
    """Write the folder of a random model, and give its law by others' code: texts to logits of the same places."""
    if kind in BUILT:
        state = large_folders.random_weights(kind)
        large_folders.write(folder, kind, state)
        (folder / "tokenizer.json").write_text(vocabulary.characters().tokenizer.to_str())
        if kind == "llada":
            return lambda x: large_folders.reference(kind, state, x)
        return lambda x: large_folders.reference(kind, state, F.pad(x, (1, 0), value=BOS))[:, :-1]
    if kind in hub.MASKED:
        model = hub.model(kind, transformers)
        hub.save(model, folder)
        return lambda x: model(F.pad(F.pad(x, (1, 0), value=2), (0, 1), value=3)).logits[:, 1:-1]
    if kind == "llada2":
        state = blocks.llada2_weights()
        blocks.llada2(folder, state)
        return lambda x: blocks.llada2_logits(state, x, blocks.seen(x.shape[1]))
    model = blocks.sdar(folder, transformers) if kind == "sdar" else blocks.fast_dllm(folder, transformers)
    blocks.tokenizer(folder)
    front = 0 if kind == "sdar" else 1

    def law(x: Tensor) -> Tensor:
        read = F.pad(x, (front, 0), value=1)
        scores = torch.zeros(1, 1, read.shape[1], read.shape[1]).masked_fill(~blocks.seen(read.shape[1]), -torch.inf)
        return model(read, attention_mask=scores.expand(len(x), 1, -1, -1)).logits[:, : x.shape[1]]

    return law


def texts(found: adaptation.Start, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Tokens that a text may have, and the same with a mask at every other place or so."""
    generator = torch.Generator().manual_seed(3)
    x_0 = torch.randint(7, 19, (3, length), generator=generator)
    return x_0, torch.where(torch.rand(x_0.shape, generator=generator) < 0.5, found.vocabulary.mask_id, x_0)


def trained(found: adaptation.Start) -> adaptation.Start:
    """The same, every weight that is trained changed."""
    for seed, value in enumerate(each for each in found.network.parameters() if each.requires_grad):
        with torch.no_grad():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)))
    return found


def write_out(found: adaptation.Start, folder: Path) -> Path:
    whole.write_folder(
        folder, lambda target: found.form.fill(target, found.network, found.vocabulary, {"objective": "nelbo"})
    )
    return folder


@every_kind
@torch.no_grad()
def test_at_its_start_it_has_the_law_of_the_folder(kind: str, tmp_path: Path) -> None:
    law = folder_of(kind, tmp_path / "hub")
    found = adaptation.start(tmp_path / "hub", LENGTH)
    _, x = texts(found)
    logits, expected = found.network.head(found.network(x)), law(x)
    possible = logits > -torch.inf
    close(torch.where(possible, logits, 0.0), torch.where(possible, expected, 0.0))
    assert possible.any(-1).all()
    assert found.network.max_length == LENGTH
    assert found.network.shifted == (kind in ("dream", "fast_dllm"))
    assert found.network.bos_id == {"dream": BOS, "fast_dllm": 1}.get(kind)


@pytest.mark.parametrize("kind", hub.MASKED)
@torch.no_grad()
def test_ids_that_no_text_holds_stay_impossible(kind: str, tmp_path: Path) -> None:
    folder_of(kind, tmp_path / "hub")
    found = trained(adaptation.start(tmp_path / "hub", LENGTH))
    logits = found.network.head(found.network(texts(found)[1]))
    drawn = torch.arange(7, 7 + len(hub.WORDS))
    assert (logits[..., drawn] > -torch.inf).all()
    assert (logits > -torch.inf).sum(-1).unique().tolist() == [len(hub.WORDS)]


def asked(tmp_path: Path, start: Path, output: Path, **more: Any) -> dict[str, Any]:
    (tmp_path / "texts").mkdir(exist_ok=True)
    for number, name in enumerate(("train", "valid", "test")):
        text = " ".join(hub.WORDS[(i * i + number) % 7].strip("#") for i in range(800))
        (tmp_path / "texts" / f"{name}.txt").write_text(text, "utf-8")
    words = {"start_from": start, "output_dir": output, "corpus.path": tmp_path / "texts", **UPDATES, **more}
    return settings_of("adapt", *words_of(words))


@pytest.mark.parametrize("kind", IN_BLOCKS)
@torch.no_grad()
def test_a_model_of_blocks_is_trained_in_its_blocks_each_after_clean_ones(kind: str, tmp_path: Path) -> None:
    law, length = folder_of(kind, tmp_path / "hub"), blocks.SIZE + 8
    made = Adapt(asked(tmp_path, tmp_path / "hub", tmp_path / "run", length=length))
    made.setup()
    x_0 = torch.randint(0, 27, (3, length), generator=torch.Generator().manual_seed(3))
    out = made.plan.stages(made.run.network)(batches.training_batch(x_0, 0, torch.arange(3), 0, 3))
    masked = out["x_t"] == blocks.MASK
    expected = torch.zeros(3, length)
    for first in (0, blocks.SIZE):
        logits = law(torch.cat([x_0[:, :first], out["x_t"][:, first:]], dim=1))
        logits[..., blocks.MASK] = -torch.inf
        own = logits.log_softmax(-1).gather(-1, x_0.unsqueeze(-1)).squeeze(-1)
        expected[:, first : first + blocks.SIZE] = own[:, first : first + blocks.SIZE]
    close(out["log_prob"], torch.where(masked, expected, 0.0))
    assert masked[:, : blocks.SIZE].any(1).all()
    assert masked[:, blocks.SIZE :].any(1).all()
    weights = torch.cat(
        [part.shape[1] / part.sum(1, keepdim=True).expand(part.shape) for part in masked.split(blocks.SIZE, 1)], 1
    )
    close(out["loss"].float(), -(weights * out["log_prob"]).sum(1))
    assert made.run.identity["objective"] == "nelbo of blocks"


@pytest.mark.slow
@every_kind
def test_a_few_steps_lower_the_loss(kind: str, tmp_path: Path) -> None:
    folder_of(kind, tmp_path / "hub")
    more = {"steps": 20, "optimizer.lr": 1e-2, "warmup_steps": 1, "decay": "constant"}
    made = Adapt(asked(tmp_path, tmp_path / "hub", tmp_path / "run", **more))
    made.setup()
    before = made.held_out_bound(made.run.average, made.blocks.train, 16).mean
    for _ in range(20):
        made.run._update()
    assert made.held_out_bound(made.run.average, made.blocks.train, 16).mean < 0.8 * before


def test_the_loss_is_over_all_tokens_those_by_which_a_text_ends_too(tmp_path: Path) -> None:
    """LLaDA ends texts by its padding, which is drawn like any token."""
    folder_of("llada", tmp_path / "hub")
    hub.change(tmp_path / "hub", eos_token_id=0, pad_token_id=0)
    made = Adapt(asked(tmp_path, tmp_path / "hub", tmp_path / "run"))
    made.setup()
    assert (made.blocks.train == made.plan.vocabulary.pad_id).any()
    made.run._update()
    assert made.run._num_tokens == UPDATES["batch_size"] * LENGTH


@every_kind
@pytest.mark.parametrize("adapter", [None, (2, 4.0)])
@torch.no_grad()
def test_the_folder_that_it_writes_is_one_of_its_family_with_the_trained_law(
    kind: str, adapter: Any, tmp_path: Path
) -> None:
    folder_of(kind, tmp_path / "hub")
    found = trained(adaptation.start(tmp_path / "hub", LENGTH, adapter=adapter))
    out = write_out(found, tmp_path / "out")
    assert shards.shapes(out) == shards.shapes(tmp_path / "hub")
    before, after = (whole.read_json(folder / "config.json") for folder in (tmp_path / "hub", out))
    assert after == {**before, "dtype": "float32", "edlm": after["edlm"]}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (tmp_path / "hub" / name).is_file():
            assert (out / name).read_bytes() == (tmp_path / "hub" / name).read_bytes()
    again = loading.denoiser(str(out), torch.device("cpu"), LENGTH)
    _, x = texts(found)
    states = found.network(x)
    close(again.network(x), states)
    expected = found.network.head(states)
    possible = expected > -torch.inf
    logits = again.network.head(again.network(x))
    assert ((logits > -torch.inf) == possible).all()
    close(torch.where(possible, logits, 0.0), torch.where(possible, expected, 0.0))
    assert again.vocabulary.fingerprint == found.vocabulary.fingerprint
    if kind in hub.MASKED:
        theirs, info = transformers.AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
        assert not any(info.values())
        framed = F.pad(F.pad(x, (1, 0), value=2), (0, 1), value=3)
        given = theirs.eval()(framed).logits[:, 1:-1]
        close(torch.where(possible, given, 0.0), torch.where(possible, expected, 0.0))


@pytest.mark.parametrize("kind", hub.MASKED)
@torch.no_grad()
def test_a_head_that_is_not_the_embedding_is_written_too(kind: str, tmp_path: Path) -> None:
    hub.save(hub.model(kind, transformers, tie_word_embeddings=False), tmp_path / "hub")
    found = trained(adaptation.start(tmp_path / "hub", LENGTH))
    out = write_out(found, tmp_path / "out")
    assert shards.shapes(out) == shards.shapes(tmp_path / "hub")
    _, x = texts(found)
    close(large.load_diffusion(out, LENGTH)(x), found.network(x))
    theirs = shards.read(out)
    assert any(torch.equal(value, found.network.head.weight) for value in theirs.values())


@pytest.mark.parametrize("kind", ["llada", "bert", "sdar"])
def test_its_weights_are_compared_with_their_hash(kind: str, tmp_path: Path) -> None:
    folder_of(kind, tmp_path / "hub")
    found = adaptation.start(tmp_path / "hub", LENGTH)
    write_out(found, tmp_path / "made")
    write_out(trained(found), tmp_path / "other")
    assert whole.read_json(tmp_path / "made" / "config.json")["edlm"][tensors.HASHES]
    shutil.copyfile(tmp_path / "other" / "model.safetensors", tmp_path / "made" / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged or exchanged"):
        large.load_diffusion(tmp_path / "made", LENGTH)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("llada", {"recompute": True}),
        ("llada", {"lora": LORA}),
        ("dream", {}),
        ("bert", {"recompute": True}),
        ("modernbert", {"lora": LORA}),
        ("sdar", {"length": blocks.SIZE + 8, "lora": LORA}),
    ],
)
def test_it_is_trained_stopped_and_resumed_bit_for_bit_and_draws(
    kind: str, how: dict[str, Any], tmp_path: Path
) -> None:
    start = tmp_path / "hub"
    folder_of(kind, start)
    require_same_end(Adapt, main, lambda output: asked(tmp_path, start, output, **how), tmp_path)
    words = {"denoiser": tmp_path / "run", "energy": None, "output": tmp_path / "texts.jsonl", "num_samples": 2}
    plain = {"num_steps": 4, "length": 8, "window": "[0.0,1.0]", "threads": 1, "num_particles": 1}
    generate.main(settings_of("generate", *words_of({**words, **plain})))
    records = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text("utf-8").splitlines()]
    assert [len(record["tokens"]) for record in records] == [8, 8]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dream", "roberta"])
def test_a_finished_run_learns_longer_and_its_folder_is_a_start_for_other_texts(kind: str, tmp_path: Path) -> None:
    folder_of(kind, tmp_path / "hub")
    main(asked(tmp_path, tmp_path / "hub", tmp_path / "run"))
    main(asked(tmp_path, tmp_path / "hub", tmp_path / "run", steps=6))
    last = checkpoints.last_checkpoint(tmp_path / "run")
    assert last is not None
    assert last.name == "step_00000006"
    other = asked(tmp_path, tmp_path / "run", tmp_path / "more")
    (tmp_path / "texts" / "train.txt").write_text("a cat ran on a mat " * 100)
    made = Adapt(other)
    made.setup()
    assert made.run.identity["start_from"] == loading.weights_of(str(tmp_path / "run"))
    earlier = large.load_diffusion(last, LENGTH + 1)
    for name, value in made.run.network.state_dict().items():
        assert torch.equal(value, earlier.state_dict()[name]), name
    main(other)
    assert json.loads((tmp_path / "more" / "report.json").read_text("utf-8"))["step"] == UPDATES["steps"]


# ---- What is refused


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("llada", {"shifted": True}, r"shifted = True: .*hub, a llada, has False; give null$"),
        ("dream", {"shifted": False}, r"shifted = False: .*hub, a Dream, has True; give null$"),
        ("bert", {"shifted": True}, r"shifted = True: .*hub, a bert, has False; give null$"),
        ("llada", {"opening_steps": 2}, r"opening_steps = 2 must be null: attention of '.*hub' is open already$"),
        ("bert", {"tokenizer": "other.json"}, r"tokenizer = 'other\.json' must be null: .*hub, a bert, goes by that"),
        ("llada", {"length": 65}, r"length = 65 must be at most 64, what .*hub reads$"),
        ("dream", {"length": 64}, r"length = 64 must be at most 63, what .*hub reads$"),
        ("bert", {"length": 31}, r"length = 31 must be at most 30, what .*hub reads$"),
        ("llada", {"parallel": "sharded"}, r"parallel = 'sharded' must be 'data': '.*hub' is a large model's$"),
    ],
)
def test_what_does_not_fit_such_a_start_is_said_in_one_line(
    kind: str, more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder_of(kind, tmp_path / "hub")
    with pytest.raises(ValueError, match=said) as refusal:
        Adapt(asked(tmp_path, tmp_path / "hub", tmp_path / "run", **more)).setup()
    assert "\n" not in str(refusal.value)


def test_a_shifted_model_without_a_bos_is_refused(tmp_path: Path) -> None:
    folder_of("dream", tmp_path / "hub")
    hub.change(tmp_path / "hub", bos_token_id=None)
    with pytest.raises(ValueError, match=r"config\.json: bos_token_id is missing, and nothing else predicts a first"):
        adaptation.start(tmp_path / "hub", LENGTH)


def test_a_text_with_a_token_that_is_never_drawn_is_refused_and_named(tmp_path: Path) -> None:
    """Its loss would be infinite: padding, for example, or a token that a tokenizer has for later use."""
    folder_of("bert", tmp_path / "hub")
    made = Adapt(asked(tmp_path, tmp_path / "hub", tmp_path / "run"))
    made.setup()
    rows = torch.full((4097, LENGTH), 8)
    made.plan.require_possible(pieces.Blocks(rows, rows, rows))
    other = rows.clone()
    other[4096, 3] = 5
    with pytest.raises(
        ValueError, match=r"corpus: a text of valid holds '\[unused0\]', a token that the model never dr"
    ):
        made.plan.require_possible(pieces.Blocks(rows, other, rows))
