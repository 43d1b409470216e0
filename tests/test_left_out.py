"""What a part of one's own need not say, and what it is then taken for."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from edlm import costs
from edlm.contracts import Reads
from edlm.data.pieces import Blocks
from edlm.evaluation import texts
from edlm.frontier import controls, curve, grid
from edlm.likelihood import nelbo
from edlm.models import denoisers, energies
from edlm.nn.networks import Transformer
from edlm.samplers import plans
from edlm.samplers.corrections import ChainRule, OfEnergy
from edlm.samplers.sampler import Sampler, name
from edlm.training import padding
from edlm.weights import own, permitted

DENOISER = denoisers.subs(Transformer(4, 4, hidden_size=4, num_layers=1, num_heads=1, conditioning_size=0), 3)
ENERGY = TensorDictModule(nn.Identity(), in_keys=["x_t"], out_keys=["energy"])


class Unsaid:
    """Blocks that do not say whether any is filled up."""

    shape = (2, 4)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, _: Any) -> Tensor:
        return torch.zeros(2, 4, dtype=torch.int64)


class Said(Unsaid):
    padded = False


ONE_OF_TWO = Blocks(*[torch.tensor([[1, 0], [1, 1]])] * 3)  # the first row of each split is filled up


def component(**left_out: Any) -> dict[str, Any]:
    return {"_component_": f"{__name__}.PLAIN", **left_out}


def PLAIN(path: str = "", name: str = "") -> Any:  # noqa: N802  a component is called by its name
    return SimpleNamespace(train=["a"], valid=["b"], test=["c"])


def corrected(correction: Any) -> Sampler:
    return Sampler(DENOISER, plans.TokensPerPass(1), correction=correction, candidates=2)


BY_NAME = corrected(ChainRule())
BY_WORD = corrected(OfEnergy(energies.zero(), called="mine"))
TAKEN_FOR: dict[str, tuple[Callable[[], Any], Any]] = {
    "an energy reads every candidate once": (lambda: costs.of_energy(ENERGY), Reads(candidates=1, calls=1)),
    "an energy weighs drafts and transitions": (lambda: energies.scopes_of(ENERGY), ("draft", "transition")),
    "blocks may be filled up": (lambda: padding.of_network("ignored", Blocks(*[Unsaid()] * 3), 0), {"pad_id": 0}),
    "a run keeps that they may": (lambda: padding.notes("ignored", Blocks(*[Unsaid()] * 3), 0), {"padding": "ignored"}),
    "one padded row is enough": (lambda: padding.of_network("ignored", ONE_OF_TWO, 0), {"pad_id": 0}),
    "a run keeps that one row is": (lambda: padding.notes("learned", ONE_OF_TWO, 0), {"padding": "learned"}),
    "no padded row is none": (lambda: padding.of_network("ignored", ONE_OF_TWO, 9), {}),
    "blocks that say so are not": (lambda: padding.of_network("ignored", Blocks(*[Said()] * 3), 0), {}),
    "a run keeps nothing of them": (lambda: padding.notes("ignored", Blocks(*[Said()] * 3), 0), {}),
    "a corpus is judged by its test split": (lambda: texts.zero_shot(component(), None, False)[1], ["c"]),
    "it is called by its component": (lambda: texts.zero_shot(component(), None, False)[0], f"{__name__}.PLAIN"),
    "or by its path": (lambda: texts.zero_shot(component(path="p"), None, False)[0], "p"),
    "or by its name": (lambda: texts.zero_shot(component(path="p", name="n"), None, False)[0], "n"),
    "a denoiser has no blocks": (lambda: nelbo.block_size(object()), None),  # type: ignore[arg-type]
    "a network was built by no component": (lambda: own.is_ours(nn.Linear(1, 1)), False),
    "a correction is called by its kind": (lambda: name(BY_NAME), "sir, chain_rule, one by one, k=2"),
    "or by its own word": (lambda: name(BY_WORD), "sir, mine, one by one, k=2"),
    "so is its family": (lambda: grid.family(BY_NAME), "sir, chain_rule"),
    "the family by its own word": (lambda: grid.family(BY_WORD), "sir, mine"),
    "so is its line": (lambda: curve.way_of(BY_NAME), "chain_rule, k=2"),
    "the line by its own word": (lambda: curve.way_of(BY_WORD), "mine, k=2"),
    "so is its control": (
        lambda: controls.flipped(BY_NAME, DENOISER, 4).correction.called,  # type: ignore[union-attr]
        "flipped chain_rule",
    ),
    "the control by its own word": (
        lambda: controls.flipped(BY_WORD, DENOISER, 4).correction.called,  # type: ignore[union-attr]
        "flipped mine",
    ),
}


@pytest.mark.parametrize("what", TAKEN_FOR)
def test_what_is_left_out_is_taken_for_this(what: str) -> None:
    found, expected = TAKEN_FOR[what]
    assert found() == expected


@pytest.mark.parametrize("value", [0, 1])
def test_the_first_id_may_be_any_special_one(value: int) -> None:
    permitted.check_notes({"bos_id": value}, "network.json")
    with pytest.raises(ValueError, match=r"^network\.json: bos_id = -1 must be an id, or null$"):
        permitted.check_notes({"bos_id": -1}, "network.json")
