"""Denoisers made of AR models that `transformers` runs: the law at the start, the folder, training, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import hub_folders as hub
import pytest
import torch
from interrupted import require_same_end
from smallest import settings_of, words_of
from torch import Tensor

from edlm.nn import adapters, decoders
from edlm.recipes import generate
from edlm.recipes.adapt import Adapt, main
from edlm.training import log
from edlm.weights import adaptation, large, loading, whole

transformers = pytest.importorskip("transformers", minversion="5", reason="needs pip install 'edlm-torch[families]'")
MASK, LENGTH, BOS = hub.V, hub.LENGTH, 1
WIDE = {"mistral": {"sliding_window": 64}, "gemma2": {"sliding_window": 64}, "gemma3_text": {"sliding_window": 64}}
KINDS = ["qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "gpt2"]
GPT2S = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")  # its products
every_kind = pytest.mark.parametrize("kind", KINDS)
UPDATES = {
    **{"steps": 4, "batch_size": 4, "valid_every": 2, "valid_rows": 4, "save_every": 2, "log_every": 1, "length": 8},
    **{"shifted": True, "ema_decay": 0.5, "threads": 1, "corpus._component_": "edlm.corpora.text_files"},
}


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "draw_curves", lambda _: None)


def folder_of(kind: str, folder: Path, **more: Any) -> tuple[Path, Any]:
    """The folder of a random model with a tokenizer, and the model."""
    made = hub.model(kind, transformers, **{**WIDE.get(kind, {}), **more})
    hub.save(made, folder)
    hub.tokenizer(folder)
    return folder, made.eval()


def texts() -> Tensor:
    """Tokens with a mask at every other place or so."""
    generator = torch.Generator().manual_seed(3)
    return torch.where(torch.rand(3, LENGTH, generator=generator) < 0.5, MASK, hub.tokens())


def expected(model: Any, x: Tensor, shifted: bool, seen: Tensor | None = None) -> Tensor:
    """Logits of the known ids by `transformers`: the mask is read as the mean of all rows, and all see all they may."""
    read = torch.nn.functional.pad(x, (1, 0), value=BOS) if shifted else x
    embedding = model.get_input_embeddings()
    rows = embedding(read.clamp(max=hub.V - 1))
    scale = getattr(embedding, "embed_scale", torch.tensor(1.0))
    rows = torch.where((read == MASK).unsqueeze(-1), embedding.weight.mean(0) * scale, rows)
    l = read.shape[1]
    allowed = torch.ones(l, l, dtype=torch.bool) if seen is None else seen
    mask = torch.zeros(1, 1, l, l).masked_fill(~allowed, torch.finfo(torch.float32).min).expand(len(read), -1, -1, -1)
    with torch.no_grad():
        logits = model(inputs_embeds=rows, attention_mask=mask).logits
    return logits[:, :-1] if shifted else logits


@every_kind
@pytest.mark.parametrize("shifted", [True, False])
def test_at_its_start_it_has_the_law_that_transformers_gives_with_attention_both_ways(
    kind: str, shifted: bool, tmp_path: Path
) -> None:
    folder, model = folder_of(kind, tmp_path / "ar")
    found, x = adaptation.start(folder, LENGTH, shifted), texts()
    with torch.no_grad():
        logits = found.network.head(found.network(x))
    torch.testing.assert_close(logits[..., : hub.V], expected(model, x, shifted), atol=2e-5, rtol=1e-4)
    assert (logits[..., MASK] == -torch.inf).all()
    assert (found.vocabulary.mask_id, found.network.max_length) == (MASK, LENGTH)


@every_kind
def test_attention_that_is_not_open_yet_is_that_of_the_ar_model(kind: str, tmp_path: Path) -> None:
    folder, model = folder_of(kind, tmp_path / "ar")
    network, x = adaptation.start(folder, LENGTH, shifted=True).network, texts()
    causal = torch.ones(LENGTH + 1, LENGTH + 1, dtype=torch.bool).tril()
    with torch.no_grad():
        logits = network.head(network(x, attention=causal))
    torch.testing.assert_close(logits[..., : hub.V], expected(model, x, True, causal), atol=2e-5, rtol=1e-4)


@every_kind
def test_its_folder_is_read_again_by_us_and_by_transformers(kind: str, tmp_path: Path) -> None:
    folder, _ = folder_of(kind, tmp_path / "ar")
    found, x = adaptation.start(folder, LENGTH, shifted=True), texts()
    with torch.no_grad():
        for value in found.network.parameters():
            value.add_(0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
        states = found.network(x)
        logits = found.network.head(states)[..., : hub.V]
    notes = {"schedule": {"_component_": "edlm.schedules.log_linear"}, "time_conditioning": False}
    whole.write_folder(
        tmp_path / "made", lambda target: found.form.fill(target, found.network, found.vocabulary, notes)
    )
    again = large.load_diffusion(tmp_path / "made", LENGTH)
    with torch.no_grad():
        torch.testing.assert_close(again(x), states)
        torch.testing.assert_close(again.head(again(x))[..., : hub.V], logits)
    assert large.adapted_by(tmp_path / "made") == {"shifted": True, "bos_id": BOS}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "made").eval()
    read = torch.nn.functional.pad(x, (1, 0), value=BOS)
    with torch.no_grad():
        mask = torch.zeros(len(x), 1, LENGTH + 1, LENGTH + 1)
        given = theirs(input_ids=read, attention_mask=mask).logits[:, :-1, : hub.V]
    torch.testing.assert_close(given, logits, atol=2e-5, rtol=1e-4)


def test_its_weights_are_compared_with_their_hash(tmp_path: Path) -> None:
    folder, _ = folder_of("qwen3", tmp_path / "ar")
    found = adaptation.start(folder, LENGTH, shifted=True)
    whole.write_folder(tmp_path / "made", lambda target: found.form.fill(target, found.network, found.vocabulary, {}))
    other = adaptation.start(folder, LENGTH, shifted=True)
    with torch.no_grad():
        next(iter(other.network.parameters())).mul_(1.5)
    whole.write_folder(tmp_path / "other", lambda target: other.form.fill(target, other.network, other.vocabulary, {}))
    shutil.copyfile(tmp_path / "other" / "model.safetensors", tmp_path / "made" / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        large.load_diffusion(tmp_path / "made", LENGTH)


def asked(tmp_path: Path, start: Path, output: Path, **more: Any) -> dict[str, Any]:
    (tmp_path / "texts").mkdir(exist_ok=True)
    for number, name in enumerate(("train", "valid", "test")):
        text = " ".join(hub.WORDS[(i * i + number) % 7].strip("#") for i in range(800))
        (tmp_path / "texts" / f"{name}.txt").write_text(text, "utf-8")
    words = {"start_from": start, "output_dir": output, "corpus.path": tmp_path / "texts", **UPDATES, **more}
    return settings_of("adapt", *words_of(words))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("qwen3", {"recompute": True}),
        ("qwen3", {"lora": "{rank: 2, alpha: 4.0}"}),
        ("gemma3_text", {"opening_steps": 3}),
        ("gpt2", {}),
        ("gpt2", {"lora": "{rank: 2, alpha: 4.0}"}),
    ],
)
def test_it_is_trained_stopped_and_resumed_bit_for_bit_and_draws(
    kind: str, how: dict[str, Any], tmp_path: Path
) -> None:
    start, _ = folder_of(kind, tmp_path / "hub")
    require_same_end(Adapt, main, lambda output: asked(tmp_path, start, output, **how), tmp_path)
    assert loading.denoiser(str(tmp_path / "run"), torch.device("cpu"), 8).network.max_length == 8
    in_order = "{plan: {name: left_to_right, count: 4}, selection: speculative, window: [0.0, 1.0]}"
    of_run = {"denoiser": tmp_path / "run"}
    drawn(tmp_path / "plain.jsonl", {**of_run, "energy": None, "num_steps": 4, "window": "[0.0,1.0]"})
    drawn(tmp_path / "in_order.jsonl", {**of_run, "energy": "chain_rule", "sampler": in_order})
    alone = {"denoiser": None, "energy": None, "ar": start}
    drawn(tmp_path / "alone.jsonl", alone)
    record = drawn(tmp_path / "ahead.jsonl", {**alone, "drafts": f"{{ahead: 2, counts: {tmp_path / 'texts'}}}"})
    assert record["calls"] <= 8  # passes of the AR model, one a token without drafts


def drawn(output: Path, words: dict[str, Any]) -> dict[str, Any]:
    """Draw two texts of known tokens; return the second."""
    how = {"output": output, "num_samples": 2, "length": 8, "threads": 1}
    generate.main(settings_of("generate", *words_of({**how, **words})))
    records = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [len(record["tokens"]) for record in records] == [8, 8]
    assert all(token < hub.V for record in records for token in record["tokens"])
    return records[1]


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
@torch.no_grad()
def test_adapters_change_nothing_at_first_and_merged_they_are_the_model_that_transformers_reads(
    kind: str, tmp_path: Path
) -> None:
    folder, _ = folder_of(kind, tmp_path / "ar")
    plain, x = adaptation.start(folder, LENGTH), texts()
    found = adaptation.start(folder, LENGTH, adapter=(2, 6.0))
    torch.testing.assert_close(found.network(x), plain.network(x), atol=2e-5, rtol=1e-4)
    trained = {name: value for name, value in found.network.named_parameters() if value.requires_grad}
    assert all(".lora_" in name or name.endswith(".mask") for name in trained)
    for seed, value in enumerate(trained.values()):
        torch.nn.init.normal_(value, std=0.3, generator=torch.Generator().manual_seed(seed))
    states = found.network(x)
    assert (states - plain.network(x)).abs().max() > 0.1
    whole.write_folder(tmp_path / "made", lambda target: found.form.fill(target, found.network, found.vocabulary, {}))
    again = large.load_diffusion(tmp_path / "made", LENGTH)
    torch.testing.assert_close(again(x), states, atol=2e-5, rtol=1e-4)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "made").eval()
    read, mask = torch.nn.functional.pad(x, (1, 0), value=BOS), torch.zeros(len(x), 1, LENGTH + 1, LENGTH + 1)
    given = theirs(input_ids=read, attention_mask=mask).logits[:, :-1, : hub.V]
    torch.testing.assert_close(given, found.network.head(states)[..., : hub.V], atol=2e-5, rtol=1e-4)


def test_every_product_of_gpt_2s_blocks_is_adapted(tmp_path: Path) -> None:
    folder, _ = folder_of("gpt2", tmp_path / "ar")
    network = adaptation.start(folder, LENGTH, adapter=(1, 1.0)).network
    found = {name.rpartition(".lora_a")[0] for name, _ in network.named_parameters() if ".lora_a" in name}
    assert found == {f"body.h.{i}.{name}" for i in range(2) for name in GPT2S}


def test_adapters_of_a_model_without_products_are_refused() -> None:
    with pytest.raises(ValueError, match="lora puts adapters on linear layers, and this model has none: give null"):
        adapters.attach(torch.nn.Sequential(torch.nn.LayerNorm(4)), 2, 4.0)


def test_shifted_is_as_the_model_is_where_nobody_says_it(tmp_path: Path) -> None:
    folder, _ = folder_of("gpt2", tmp_path / "ar")
    for shifted, wanted in ((None, True), (True, True), (False, False)):
        found = adaptation.start(folder, LENGTH, shifted)
        assert found.network.shifted == wanted
        target = tmp_path / f"made {shifted}"
        whole.write_folder(target, lambda at, made=found: made.form.fill(at, made.network, made.vocabulary, {}))
        assert adaptation.start(target, LENGTH).network.shifted == wanted


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("rope", sorted(hub.ROPES))
def test_positions_that_torchtune_does_not_have_are_run_by_transformers_or_refused(
    kind: str, rope: str, tmp_path: Path
) -> None:
    made = hub.model(kind, transformers, hub.ROPES[rope]).eval()
    folder = hub.save(made, tmp_path / "ar")
    hub.tokenizer(folder)
    found, x = adaptation.start(folder, LENGTH, shifted=False), texts()
    with torch.no_grad():
        logits = found.network.head(found.network(x))[..., : hub.V]
    torch.testing.assert_close(logits, expected(made, x, shifted=False), atol=2e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"rope_type = .* is not read so: torchtune's builders do not have it"):
        large.read_start(folder, LENGTH, decoders.autoregressive)
