"""`generate` of an AR model alone with drafts: by its masks, by counts in a text, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_folder import hub_model
from smallest import ar_words, settings_of, train, words_of

from edlm.data import corpora
from edlm.evaluation import drafted, generation
from edlm.models.counts import Counts
from edlm.recipes import generate
from edlm.samplers import ahead, drafters
from edlm.weights import loading, resolve


@pytest.fixture(scope="module")
def ar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drafting") / "ar"
    train("pretrain_ar", *ar_words(folder), "drafts={ahead: 3, every: 1}")
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for name, sentence in {"train": "the cat and the dog sat on the mat ", "valid": "a dog", "test": "a cat"}.items():
        (folder / f"{name}.txt").write_text("\n\n".join([sentence * 3] * 4))
    return folder


def settings(ar: Path, output: Path, asked: str, **more: Any) -> dict[str, Any]:
    alone = {"denoiser": None, "energy": None, "ar": ar, "output": output, "num_samples": 3, "threads": 1}
    return settings_of("generate", *words_of({**alone, "length": 12, **more}), f"drafts={asked}")


@pytest.mark.parametrize("kind", ["masks", "counts"])
def test_texts_are_those_of_the_library_and_the_report_says_what_they_took(
    kind: str, ar: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = "{ahead: 3}" if kind == "masks" else f"{{ahead: 3, counts: {text}, order: 4, tokens: 100}}"
    generate.main(settings(ar, tmp_path / "x.jsonl", asked, seed=5, temperature=0.8, prompt="the"))
    found = loading.autoregressive(str(ar), torch.device("cpu"))
    words, bos_id = found.vocabulary, found.description["bos_id"]
    if kind == "masks":
        drafter: Any = drafters.OfMasks(found.network, words.mask_id, 3, 0.8)
    else:
        counted = torch.cat([words.encode(each) for each in corpora.text_files(text).train])[:100]
        drafter = drafters.OfCounts(Counts(counted, 4, words.size, words.mask_id), 3, 0.8)
    prompt = words.encode_prompt("the")
    out = ahead.sample(found.network, drafter, 3, 12, words.mask_id, bos_id, seed=5, prompt=prompt)
    records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [record["tokens"] for record in records] == out.tokens.tolist()
    assert [record["rounds"] for record in records] == out.rounds.tolist()
    assert [record["calls"] for record in records] == out.calls.tolist()
    assert "rounds" in capsys.readouterr().out


def test_counts_draft_for_a_large_model_and_its_masks_do_not(text: Path, tmp_path: Path) -> None:
    start = hub_model(tmp_path / "hub")
    generate.main(settings(start, tmp_path / "x.jsonl", f"{{ahead: 2, counts: {text}}}", batch_size=2))
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 3
    with pytest.raises(ValueError, match="asks for drafts by masks, which a DecoderNetwork does not read"):
        generate.main(settings(start, tmp_path / "y.jsonl", "{ahead: 2}"))


def test_another_text_to_count_in_gives_other_texts_another_name(ar: Path, text: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in text.iterdir():
        (copy / file.name).write_text(file.read_text())
    asked = settings(ar, tmp_path / "x.jsonl", f"{{ahead: 2, counts: {copy}}}")
    before = generation.fingerprint(asked)
    assert generation.fingerprint(asked) == before
    (copy / "train.txt").write_text("another text\n\nof two documents")
    assert generation.fingerprint(asked) != before


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("{ahead: 2, order: 3}", "drafts.order = 3 is of counts: give drafts.counts, a text to count in"),
        ("{ahead: 2, tokens: 3}", "drafts.tokens = 3 is of counts: give drafts.counts, a text to count in"),
        ("{ahead: 2, counts: nowhere.txt}", "nowhere.txt"),
    ],
)
def test_drafts_that_cannot_be_are_refused(asked: str, said: str, ar: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        generate.main(settings(ar, tmp_path / "x.jsonl", asked))


def test_a_denoiser_has_its_own_way_to_say_how_it_drafts(trained: Path, ar: Path, tmp_path: Path) -> None:
    words = words_of({"denoiser": trained / "denoiser", "energy": None, "output": tmp_path / "x.jsonl", "threads": 1})
    with pytest.raises(ValueError, match="is for an AR model alone: with denoiser = "):
        generate.main(settings_of("generate", *words, "drafts={ahead: 2}"))


def test_so_many_tokens_are_counted_and_an_n_gram_has_its_usual_order(ar: Path, text: Path) -> None:
    found = resolve.load(settings(ar, Path("x.jsonl"), "{ahead: 2}"), torch.device("cpu"))
    made = drafted.drafter({"drafts": {"ahead": 2, "counts": str(text)}, "temperature": 1.0}, found)
    assert isinstance(made, drafters.OfCounts)
    assert (made.ahead, made.counts.order) == (2, drafted.ORDER)
    some = drafted.counts(str(text), 2, 10, found.vocabulary, torch.device("cpu"))
    law = some.logits(torch.tensor([[some.nothing]]))[0].exp()
    ten = torch.cat([found.vocabulary.encode(each) for each in corpora.text_files(text).train])[:10]
    kinds = len(ten.unique())
    torch.testing.assert_close(law[ten[0]], ((ten == ten[0]).sum() + kinds / 27) / (10 + kinds))
