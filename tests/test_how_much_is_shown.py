"""How much of something long a message shows, and how many digits a fingerprint has."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from edlm.data import continuation, corpora, datasets, documents, vocabulary
from edlm.evaluation import generation, samples
from edlm.runs import files, locks
from edlm.weights import checkpoints, config_keys, families, foreign, gguf_files, tensors, trunk_energies

ABC = vocabulary.characters("abc")
LONG = "x" * 99


def sixteen(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def test_a_fingerprint_has_sixteen_digits_of_a_hash() -> None:
    assert files.fingerprint({"b": 1, "a": 2}) == sixteen('{"a": 2, "b": 1}')
    assert datasets._digest("a", "b") == sixteen("a\nb")
    ids = {"size": 4, "mask_id": 3, "bos_id": None, "eos_id": None, "pad_id": None}
    assert ABC.fingerprint == sixteen(ABC.tokenizer.to_str() + json.dumps(ids, indent=2))
    said = "1 documents" + "2 bytesab" + "0 documents" + "2 documents" + "1 bytesc" + "2 bytesé"
    assert corpora.Corpus(["ab"], [], ["c", "é"]).fingerprint == sixteen(said)


def test_a_hash_is_told_by_its_first_twelve_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, was = "0123456789abcdef", "fedcba9876543210"
    with pytest.raises(ValueError, match=r"its sha256 is 0123456789ab, and was fedcba987654; verify=false"):
        tensors.require_hash(found, was, Path("a"))
    monkeypatch.setattr(checkpoints, "find_network", Path)
    known = {"vocabulary": ABC.fingerprint, trunk_energies.OVER: was}
    monkeypatch.setattr(checkpoints, "read_description", lambda folder: known)
    said = r"energy = 'a' was trained over .* have sha256 fedcba987654, and not over this one \(0123456789ab\): name"
    network = torch.nn.Linear(1, 1)
    for change in ({}, {"vocabulary": "other", trunk_energies.OVER: found}):
        known.update(change)
        with pytest.raises(ValueError, match=said if not change else "have sha256 0123456789ab, and not over this one"):
            trunk_energies.load("a", network, found, ABC, torch.device("cpu"))


def test_of_what_a_file_of_weights_lacks_five_are_named(tmp_path: Path) -> None:
    names = [f"w{number}" for number in range(7)]
    file = tmp_path / "model.safetensors"
    save_file({"other": torch.zeros(1)}, file)
    said = f"{file}: other is not known; {'; '.join(f'{name} is missing' for name in names[:4])}"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        tensors.require_named(dict.fromkeys(names, (1,)), file)
    content: Any = gguf_files.Content({}, {}, lambda name: torch.zeros(1))
    config = {"model_type": "llama", "tie_word_embeddings": True, "num_hidden_layers": 1}
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        gguf_files._names(Path("x"), config, content)
    assert str(refused.value).count(" is missing") == 5


def test_of_unknown_keys_five_are_shown_and_of_their_values_sixty_letters() -> None:
    config = {f"k{number}": LONG for number in range(7)}
    shown = ", ".join(f"k{number} = {LONG[:60]}" for number in range(5))
    said = f"a/config.json: not known, and may change the network: {shown}"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        config_keys.require_known(Path("a"), config, ())


CSV = "the number of a class"
CUT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a setting": (lambda _: foreign._settings({"a": LONG}, {"x": "a"}), f"say a = {repr(LONG)[:60]}, which must be"),
    "a record": (lambda _: samples._sample(json.dumps(LONG), 0, ABC), f"it is {repr(LONG)[:60]}"),
    "a text": (lambda _: samples._sample(json.dumps({"text": [LONG]}), 0, ABC), f"text = {repr([LONG])[:60]} must be"),
    "ids": (
        lambda _: samples._sample(json.dumps({"text": "a", "tokens": [LONG]}), 0, ABC),
        f"tokens = {repr([LONG])[:60]} must be a list of ids in [0, 4)",
    ),
    "a class": (lambda folder: list(documents.read(folder / "a.csv")), f"a.csv: {repr(LONG)[:60]} must be {CSV}"),
}


@pytest.mark.parametrize("what", CUT)
def test_a_long_value_is_cut_after_sixty_letters(what: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"1,a\n{LONG},b\n")
    ask, said = CUT[what]
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        ask(tmp_path)
    assert LONG[:60] not in str(refused.value)


def test_a_word_behind_a_gap_is_shown_by_twenty_letters() -> None:
    tokenizer = Tokenizer.from_str(ABC.tokenizer.to_str())

    class Spaced:
        """A tokenizer that puts a space before every token."""

        def to_str(self) -> str:
            return tokenizer.to_str()

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            assert not skip_special_tokens
            return " ".join("abc"[each] for each in ids)

    with pytest.raises(ValueError, match=rf"puts a space before '{'a' * 20}', so it cannot"):
        continuation.require_joined(Spaced(), "a" * 30, [0] * 30)  # type: ignore[arg-type]
    continuation.require_joined(Spaced(), " a", [0])  # type: ignore[arg-type]
    continuation.require_joined(Spaced(), "", [])  # type: ignore[arg-type]


def test_texts_of_other_settings_are_told_apart_by_eight_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "fingerprint", lambda settings: "0123456789abcdef")
    monkeypatch.setattr(generation.resolve, "check", lambda settings: None)
    monkeypatch.chdir(tmp_path)
    given = {"output": f"a_{locks.BY_SETTINGS}.jsonl", "seed": 3}
    with generation.named_output(given) as named:
        assert named == {"output": "a_01234567.jsonl", "seed": 3}
    with generation.named_output({"output": "a.jsonl"}) as named:
        assert named["output"] == "a.jsonl"


def test_families_name_five_problems_too(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {f"w{number}": f"v{number}" for number in range(7)}
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        families.named(Path("a"), names, lambda folder: {})
    assert len(str(refused.value).split("; ")) == 5
