"""Networks of one's own: what they have to be, and that a folder executes none that its reader does not name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edlm.data import vocabulary
from edlm.nn import networks
from edlm.nn.blocks import Head
from edlm.runs import environment
from edlm.weights import checkpoints, own

NAME = f"{__name__}.Mean"
SUPPLIED = {"vocab_size": 5, "max_length": 8}


class Mean(nn.Module):
    """Every position reads the mean of all."""

    def __init__(self, vocab_size: int, max_length: int, width: int = 4) -> None:
        super().__init__()
        self.max_length = max_length
        self.embedding = nn.Embedding(vocab_size, width)
        self.head = Head(width, vocab_size)

    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        states = self.embedding(tokens)
        states = states + states.mean(1, keepdim=True)
        return states if positions is None else states.flatten(0, 1)[positions]


class Headless(Mean):
    def __init__(self, vocab_size: int, max_length: int) -> None:
        super().__init__(vocab_size, max_length)
        del self.head


class Short(Mean):
    def __init__(self, vocab_size: int, max_length: int) -> None:
        super().__init__(vocab_size, max_length - 1)


class Narrow(Mean):
    def __init__(self, vocab_size: int, max_length: int) -> None:
        super().__init__(vocab_size, max_length)
        self.head = Head(4, vocab_size - 1)


class Plain(Mean):
    def __init__(self, vocab_size: int, max_length: int) -> None:
        super().__init__(vocab_size, max_length)
        self.head = nn.Linear(4, vocab_size)  # type: ignore[assignment]


class Elsewhere(Mean):
    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        states = super().forward(tokens)
        return states if positions is None else states.flatten(0, 1)[positions.flip(0)]


class Near(Mean):
    """Its states at flat positions are a hundredth off."""

    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        return super().forward(tokens, sigma, positions) + (0.0 if positions is None else 0.01)


class Shaded(Mean):
    """Its head gives logits for some columns that are a hundredth off."""

    def __init__(self, vocab_size: int, max_length: int) -> None:
        super().__init__(vocab_size, max_length)
        self.head = _Shaded(4, vocab_size)


class _Shaded(Head):
    def forward(self, hidden: Tensor, columns: slice | None = None) -> Tensor:
        return super().forward(hidden, columns) + (0.0 if columns is None else 0.01)


class Deaf(Mean):
    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(tokens)


class Sliced(Mean):
    """Its head gives the first columns for any."""

    def __init__(self, vocab_size: int, max_length: int) -> None:
        super().__init__(vocab_size, max_length)
        self.head = _First(4, vocab_size)


class _First(Head):
    def forward(self, hidden: Tensor, columns: slice | None = None) -> Tensor:
        return super().forward(hidden, columns and slice(0, columns.stop - columns.start))


class Timeless(Mean):
    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        if sigma is not None:
            raise TypeError("no level")
        return super().forward(tokens, sigma, positions)


class Levelled(Mean):
    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        assert sigma is None or (sigma.shape == tokens.shape[:1] and not sigma.any())
        return super().forward(tokens, sigma, positions)


class Pooled(Mean):
    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        return super().forward(tokens).mean(1)


def built(cls: Any = Mean, **arguments: Any) -> Any:
    section = {"_component_": f"{__name__}.{cls.__name__}", **arguments}
    torch.manual_seed(0)
    return own.adopt(cls(**SUPPLIED, **arguments), section, SUPPLIED)


def saved(folder: Path, **changes: Any) -> Path:
    checkpoints.save_network(folder, built(width=6), vocabulary.characters("abcd"), {})
    description = json.loads((folder / "network.json").read_text())
    (folder / "network.json").write_text(json.dumps({**description, **changes}))
    return folder


def test_what_is_saved_is_built_again_with_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, tokens = saved(tmp_path / "n"), torch.tensor([[0, 1, 2, 3]])
    description = checkpoints.read_description(folder)
    assert (description["class"], description["arguments"]) == (NAME, {**SUPPLIED, "width": 6})
    found = checkpoints.load_network(folder, components=[NAME])
    assert torch.equal(found(tokens), built(width=6)(tokens))
    assert not found.training
    checkpoints.save_network(tmp_path / "again", found, vocabulary.characters("abcd"), {})
    monkeypatch.setenv(environment.COMPONENTS, f"other.Name,{NAME}")
    assert torch.equal(checkpoints.load_network(tmp_path / "again")(tokens), found(tokens))
    assert type(own.builder(found)()) is Mean


def test_a_folder_executes_nothing_that_its_reader_does_not_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(environment.COMPONENTS, raising=False)
    folder, called = saved(tmp_path / "n"), []
    with monkeypatch.context() as watched:
        watched.setattr(Mean, "__init__", lambda *_, **__: called.append(1))
        for components in ((), ("other.Name",), (f"{NAME}s",), (NAME.rpartition(".")[0],), ("",)):
            with pytest.raises(ValueError, match=rf"is not executed unless you name it: components=\[{NAME}\]"):
                checkpoints.load_network(folder, components=components)
    assert not called
    for number, name in enumerate((None, "", ["os.system"], {"_component_": "os.system"}, "os.system")):
        with pytest.raises(ValueError, match=r"network\.json: class .* is not one of Transformer"):
            checkpoints.load_network(saved(tmp_path / str(number), **{"class": name}), components=[NAME])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.Net", "cannot be imported"),
        ("math.pi", "cannot be called"),
        ("math.sqrt", "make no math.sq"),
    ],
)
def test_a_name_that_is_no_network_gets_one_line(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said) as error:
        checkpoints.load_network(saved(tmp_path / "n", **{"class": name}), components=[name])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Headless, "has no head: a `blocks.Head`"),
        (Short, "max_length = 7 must be at least 8"),
        (Narrow, r"head\.out_features must be the vocabulary's 5"),
        (Plain, "TypeError"),
        (Elsewhere, "other states at flat positions"),
        (Near, "other states at flat positions"),
        (Shaded, "its head gives other logits for some columns than for all"),
        (Deaf, "TypeError"),
        (Sliced, "its head gives other logits for some columns than for all"),
        (Timeless, "TypeError: no level"),
        (Pooled, r"gives states of shape \(2, 4\) for tokens of shape \(2, 3\)"),
    ],
)
def test_a_module_that_is_no_network_is_refused_when_it_is_built(cls: Any, said: str) -> None:
    with pytest.raises(ValueError, match=rf"network: {__name__}.{cls.__name__}: .*{said}"):
        built(cls)


def test_what_is_tried_is_left_in_the_mode_it_was_in() -> None:
    for training in (True, False):
        made = Mean(**SUPPLIED).train(training)
        assert own.adopt(made, {"_component_": NAME}, SUPPLIED).training == training


def test_one_that_no_config_has_named_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="or what a config names, and this is a Mean"):
        checkpoints.save_network(tmp_path / "n", Mean(**SUPPLIED), vocabulary.characters("abcd"), {})
    ours = networks.Transformer(5, 8, hidden_size=16, num_layers=1, num_heads=2)
    assert own.adopt(ours, {"_component_": "anything"}, SUPPLIED) is ours
    assert own.name_of(ours) == "Transformer"
    stranger = type("Transformer", (Mean,), {})(**SUPPLIED)
    with pytest.raises(ValueError, match="this is a Transformer"):
        own.name_of(stranger)


def test_it_is_tried_with_a_noise_level_for_each_text() -> None:
    assert built(Levelled).component.endswith("Levelled")
