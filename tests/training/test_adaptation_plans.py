"""What an adaptation starts from: which settings a network of ours and a large model take, and what reaches each."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from edlm.data import vocabulary
from edlm.nn.networks import Transformer
from edlm.nn.pretrained import VocabularyHead
from edlm.training import adaptation
from edlm.weights import checkpoints

WORDS = vocabulary.characters("abcd", specials=["bos", "pad"])


@pytest.mark.parametrize("kind", ["ours", "plain"])
def test_a_head_that_draws_every_token_is_asked_for_no_text(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VocabularyHead, "is_plain", True, raising=False)
    head = VocabularyHead.__new__(VocabularyHead) if kind == "plain" else nn.Linear(2, 2)
    network: Any = SimpleNamespace(head=head)
    adaptation.Plan(network, WORDS, None, checkpoints.OWN, "", {}).require_possible(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value", "plain"),
    [("shifted", True, False), ("lora", {"rank": 1, "alpha": 1.0}, None), ("tokenizer", "t", None)],
)
def test_a_network_of_ours_is_adapted_with_nothing_that_is_for_large_models(
    key: str, value: Any, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Transformer(WORDS.size, 16, hidden_size=4, num_layers=1, num_heads=1, conditioning_size=0, causal=True)
    found = SimpleNamespace(network=held, vocabulary=WORDS, weights="0a1b")
    monkeypatch.setattr(adaptation, "_held", lambda path: found if path == "folder" else None)
    own = {"start_from": "folder", "shifted": None, "lora": None, "tokenizer": None, "length": 8}
    for given in (None, plain):
        plan = adaptation._of_ours({**own, key: given})
        network: Any = plan.network
        assert (network.arguments["causal"], network.max_length) == (False, 8)
        assert all(torch.equal(network.state_dict()[name], each) for name, each in held.state_dict().items())
        assert (plan.vocabulary, plan.pad_id, plan.form, plan.weights) == (WORDS, WORDS.pad_id, checkpoints.OWN, "0a1b")
        assert plan.settings["shifted"] is False
    said = f"{key} = {value!r} is for large models: with 'folder' give {plain!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        adaptation._of_ours({**own, key: value})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"opening_steps": 9}, "opening_steps = 9 must be at most steps = 8: attention opens in them"),
        ({"parallel": "sharded"}, "parallel = 'sharded' must be 'data': 'big' is a large model's"),
        ({"opening_steps": 8}, "opening_steps = 8 must be null: attention of 'big' is open already"),
    ],
)
def test_a_large_model_is_not_adapted_in_parts_nor_opened_twice(
    changed: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, form = SimpleNamespace(shifted=True), checkpoints.OWN
    made = SimpleNamespace(network=network, vocabulary=WORDS, form=form, weights="0a1b")
    given: list[Any] = []
    monkeypatch.setattr(adaptation.large, "hub_folder", Path)
    monkeypatch.setattr(adaptation.adaptation, "predicts_masks", lambda folder: True)
    monkeypatch.setattr(adaptation.adaptation, "start", lambda *own: given.append(own) or made)
    own = {"start_from": "big", "lora": None, "steps": 8, "parallel": "data", "length": 9, "shifted": None}
    own["tokenizer"] = "t"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        adaptation.plan({**own, **changed})
    for adapter, ranks in ((None, None), ({"rank": 2, "alpha": 4.0}, (2, 4.0))):
        plan = adaptation.plan({**own, "lora": adapter})
        assert given[-1] == (Path("big"), 9, None, "t", ranks)
        assert (plan.network, plan.pad_id, plan.form, plan.weights) == (network, None, form, "0a1b")
        assert plan.settings["shifted"] is True
