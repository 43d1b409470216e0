"""`pretrain_ar` of a folder of the hub, trained further as it is, and of a network that drafts its own next tokens."""

import json
import re
from pathlib import Path
from typing import Any

import hub_folders as hub
import pytest
import torch
from hub_folder import hub_model
from interrupted import require_same_end
from smallest import ar_words, settings_of, words_of

from edlm.models import autoregressive
from edlm.nn import decoders
from edlm.objectives import batches
from edlm.recipes import generate
from edlm.recipes.pretrain_ar import PretrainAr, main
from edlm.training import log, report
from edlm.weights import adaptation, checkpoints, large, loading

UPDATES = {"steps": 4, "batch_size": 4, "valid_every": 2, "valid_rows": 4, "save_every": 2, "log_every": 1}
LARGE = {"length": 16, "ema_decay": 0.5, "corpus._component_": "edlm.corpora.embedded"}


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "draw_curves", lambda _: None)


def settings(start: Path, output: Path, **more: Any) -> dict[str, Any]:
    """Those of a training of a folder of the hub on the embedded corpus."""
    words = [f"start_from={start}", f"output_dir={output}", "threads=1", *words_of({**UPDATES, **LARGE, **more})]
    found = settings_of("pretrain_ar", *words, config="smollm2")
    return {**found, "corpus": {"_component_": "edlm.corpora.embedded"}}


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"lora": "{rank: 2, alpha: 4.0}"}, {"recompute": False, "accumulate": 1}])
def test_a_folder_of_the_hub_is_trained_further_stopped_and_resumed_bit_for_bit(
    how: dict[str, Any], tmp_path: Path
) -> None:
    start = hub_model(tmp_path / "hub")
    require_same_end(PretrainAr, main, lambda output: settings(start, output, **how), tmp_path)


def test_what_ends_a_text_of_a_folder_counts_in_the_loss_and_in_the_report(tmp_path: Path) -> None:
    """Its padding is its end of text here, and no block is filled up with anything that counts nowhere."""
    start = hub_model(tmp_path / "hub", pad_token_id=5, eos_token_id=5)
    made = PretrainAr(settings(start, tmp_path / "run"))
    made.setup()
    assert made.plan.vocabulary.pad_id == 5
    made.run._update()
    assert made.run._num_tokens == UPDATES["batch_size"] * LARGE["length"]
    found = report.held_out(made.plan.blocks, made.run.vocabulary, 16)
    characters = sum(map(len, made.run.vocabulary.decode(made.plan.blocks.test[:16])))
    assert found.characters_per_token == characters / made.plan.blocks.test[:16].numel()


def test_adapters_alone_are_trained_where_they_are_asked_for(tmp_path: Path) -> None:
    made = PretrainAr(settings(hub_model(tmp_path / "hub"), tmp_path / "run", lora="{rank: 2, alpha: 4.0}"))
    made.setup()
    trained = {name for name, value in made.plan.network.named_parameters() if value.requires_grad}
    assert trained
    assert all("lora" in name for name in trained)


def test_it_begins_as_the_model_is_and_ends_as_a_folder_of_its_family(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = hub_model(tmp_path / "hub")
    made = PretrainAr(settings(start, tmp_path / "run"))
    made.setup()
    blocks = made.plan.blocks.test[:4]
    before = decoders.load(large.read_autoregressive(start, 16))
    bos_id = large.special_id(start, json.loads((start / "config.json").read_text()), "bos")
    assert made.plan.bos_id == bos_id
    with torch.no_grad():
        law = autoregressive.ar_log_prob(before, blocks, made.plan.vocabulary.mask_id, bos_id)
    assert made.held_out_nll(made.run.average, blocks).mean == pytest.approx(-float(law.double().mean()), abs=1e-5)
    main(settings(start, tmp_path / "run"))
    assert "exact NLL (test)" in capsys.readouterr().out
    found = loading.autoregressive(str(tmp_path / "run"), torch.device("cpu"))
    told = json.loads((tmp_path / "run" / "report.json").read_text())
    with torch.no_grad():
        law = autoregressive.ar_log_prob(found.network, made.plan.blocks.test[:16], found.vocabulary.mask_id, bos_id)
    assert told["mean"] == pytest.approx(-float(law.double().mean()), abs=1e-5)
    written = large.hub_folder(tmp_path / "run")
    assert written is not None
    assert large.adapted_by(written) is None, "it stays autoregressive"
    alone = {"denoiser": None, "energy": None, "ar": tmp_path / "run", "output": tmp_path / "x.jsonl"}
    generate.main(settings_of("generate", *words_of({**alone, "num_samples": 2, "length": 8, "threads": 1})))
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"padding": "learned"},
            "padding = 'learned' must be ignored: start_from = '{start}' is a large model's folder",
        ),
        (
            {"parallel": "sharded"},
            "parallel = 'sharded' must be data: start_from = '{start}' is a large model's folder",
        ),
        ({"drafts": "{ahead: 2, every: 1}"}, "drafts = {'ahead': 2, 'every': 1} must be null: start_from = '{start}'"),
        (
            {"network._component_": "edlm.networks.Transformer"},
            "network = {'_component_': 'edlm.networks.Transformer'} must be null: start_from = '{start}'",
        ),
    ],
)
def test_what_a_folder_of_the_hub_cannot_be_asked_is_refused(more: dict[str, Any], said: str, tmp_path: Path) -> None:
    start = hub_model(tmp_path / "hub")
    with pytest.raises(ValueError, match=re.escape(said.replace("{start}", str(start)))):
        main(settings(start, tmp_path / "run", **more))


def test_a_text_may_be_as_long_as_what_the_model_reads(tmp_path: Path) -> None:
    start = hub_model(tmp_path / "hub")
    most = json.loads((start / "config.json").read_text("utf-8"))["max_position_embeddings"]
    ids = large.load_vocabulary(start, add_mask=True)
    assert adaptation.start_causal(start, most, ids).network.max_length == most
    with pytest.raises(ValueError, match=f"reads {most} tokens, and a text has {most + 1}: give length="):
        adaptation.start_causal(start, most + 1, ids)


def test_a_folder_that_cannot_be_trained_or_begun_is_named(tmp_path: Path) -> None:
    no_bos = hub_model(tmp_path / "no_bos", bos_token_id=None)
    with pytest.raises(ValueError, match=r"no_bos/config\.json names no bos_token_id to read in front of a text"):
        main(settings(no_bos, tmp_path / "run"))
    long = hub_model(tmp_path / "hub")
    with pytest.raises(ValueError, match=r"start_from = .* reads \d+ tokens, and a text has \d+"):
        main(settings(long, tmp_path / "run", length=100_000))
    ours = settings_of("pretrain_ar", *ar_words(tmp_path / "ar"))
    with pytest.raises(ValueError, match="network = null is for the folder of a large model in start_from, not None"):
        main({**ours, "network": None})
    with pytest.raises(ValueError, match=r"lora = .* must be null: start_from names no large model"):
        main({**ours, "lora": {"rank": 2, "alpha": 4.0}})


def test_a_network_that_drafts_is_trained_resumed_and_remembers_how(tmp_path: Path) -> None:
    words = [*ar_words(tmp_path / "run"), "drafts={ahead: 3, every: 2}"]
    made = PretrainAr(settings_of("pretrain_ar", *words))
    made.setup()
    assert made.run.identity["drafts"] == {"ahead": 3, "every": 2}
    batch = batches.training_batch(made.plan.blocks.train[torch.arange(4)], 0, torch.arange(4), 0, 4)
    drafted = made.run.stages(batch)["log_prob_drafted"]
    assert (drafted != 0).any(1).tolist() == [True, False, True, False]
    main(settings_of("pretrain_ar", *words))
    with pytest.raises(ValueError, match="drafts"):
        main(settings_of("pretrain_ar", *ar_words(tmp_path / "run")))
    main(settings_of("pretrain_ar", *ar_words(tmp_path / "whole"), "drafts={ahead: 3, every: 2}", "steps=3"))
    main(settings_of("pretrain_ar", *ar_words(tmp_path / "whole"), "drafts={ahead: 3, every: 2}"))


def test_a_network_of_ours_begins_as_its_seed_says(tmp_path: Path) -> None:
    """Whatever was drawn before in the same process."""

    def weights(seed: int, drawn_before: int) -> torch.Tensor:
        torch.manual_seed(drawn_before)
        made = PretrainAr(settings_of("pretrain_ar", *ar_words(tmp_path / "run"), f"seed={seed}"))
        made.setup()
        return torch.cat([value.flatten() for value in made.plan.network.parameters()])

    assert torch.equal(weights(3, drawn_before=1), weights(3, drawn_before=2))
    assert not torch.equal(weights(3, drawn_before=1), weights(4, drawn_before=1))


def test_a_tokenizer_that_is_given_is_read_where_the_folder_has_none(tmp_path: Path) -> None:
    start = hub_model(tmp_path / "hub")
    wanted = large.load_vocabulary(start, add_mask=True).fingerprint
    elsewhere = (start / "tokenizer.json").rename(tmp_path / "other.json")
    made = PretrainAr(settings(start, tmp_path / "run", tokenizer=elsewhere))
    made.setup()
    assert made.plan.vocabulary.fingerprint == made.plan.identity["tokenizer"] == wanted


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "gpt2"])
def test_a_family_that_transformers_runs_is_trained_further_and_read_by_it(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip(
        "transformers", minversion="5", reason="needs pip install 'edlm-torch[families]'"
    )
    start = hub.save(hub.model(kind, transformers), tmp_path / "hub")
    hub.tokenizer(start)
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("train", "valid", "test"):
        (texts / f"{name}.txt").write_text("the cat sat on a mat . " * 40, "utf-8")
    more = {"corpus._component_": "edlm.corpora.text_files", "corpus.path": texts, "length": 12, "steps": 8}
    words = [f"start_from={start}", f"output_dir={tmp_path / 'run'}", "threads=1", "optimizer.lr=0.001"]
    given = settings_of("pretrain_ar", *words, *words_of({**UPDATES, "ema_decay": 0.0, **more}), config="smollm2")
    main(given)
    last = checkpoints.last_checkpoint(tmp_path / "run")
    assert last is not None
    own, theirs = loading.autoregressive(str(tmp_path / "run"), torch.device("cpu")), []
    x = torch.tensor([[7, 8, 9, 10, 11, 12, 16, 7], [12, 9, 7, 8, 16, 7, 8, 9]])
    with torch.no_grad():
        law = autoregressive.ar_log_prob(own.network, x, own.vocabulary.mask_id, 1)
        for folder in (start, last):
            model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
            logits = model(torch.nn.functional.pad(x, (1, 0), value=1)).logits[:, :-1]
            theirs.append(logits.log_softmax(-1).gather(2, x.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(law, theirs[1], atol=2e-5, rtol=1e-4)
    assert theirs[1].mean() > theirs[0].mean() + 0.1, "it has learned"
