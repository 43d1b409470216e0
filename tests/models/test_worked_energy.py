"""The example of docs/howto/energies.md runs as it is printed, and its two forms are one energy."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import randomise
from hypothesis import given
from hypothesis import strategies as st

from edlm import testing
from edlm.data import vocabulary
from edlm.nn import networks
from edlm.weights import checkpoints

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "energies.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
LETTERS = vocabulary.characters("abc ")
WORDS = ["a", "ab", "abc", "cab", "b"]


@cache
def classes() -> tuple[type[Any], type[Any]]:
    """The example's two modules, from the page's lines up to where they are used."""
    names: dict[str, Any] = {}
    for code in BLOCKS[:2]:
        exec(re.split(r"^(?:vocabulary|lexicon) = ", code, flags=re.MULTILINE)[0], names)
    return names["UnknownWords"], names["WordTable"]


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    characters = vocabulary.characters()
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    denoiser = randomise(networks.Transformer(28, 64, **sizes, conditioning_size=8), 0)
    ar = randomise(networks.Transformer(28, 64, **sizes, conditioning_size=0, causal=True), 1)
    checkpoints.save_network(tmp_path / "runs/tiny/denoiser", denoiser, characters, {})
    checkpoints.save_network(tmp_path / "runs/tiny/ar", ar, characters, {})
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in BLOCKS:
        exec(compile(code, "energies.md", "exec"), names)
    assert "tensor" in capsys.readouterr().out
    assert (names["out"]["tokens"] < 27).all()
    with pytest.raises(AssertionError, match="one graph"):
        testing.check_one_graph(names["on_host"], testing.drafts(28, 27))


@given(st.lists(st.text("abc _", min_size=12, max_size=12), min_size=1, max_size=4))
def test_the_table_counts_what_the_host_counts(texts: list[str]) -> None:
    on_host, table = (cls(WORDS, LETTERS) for cls in classes())
    ids = [[LETTERS.mask_id if c == "_" else "abc ".index(c) for c in text] for text in texts]
    candidates = torch.tensor(ids).unsqueeze(1)
    assert torch.equal(on_host(candidates), table(candidates))


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("   ", 0), ("ab a cab", 0), ("ac", 1), ("abca b", 1), ("bb bb", 2), ("c_ _c c", 1), ("ca", 1)],
)
def test_a_word_is_known_or_not_and_one_with_a_mask_is_neither(text: str, count: int) -> None:
    ids = torch.tensor([[[LETTERS.mask_id if c == "_" else "abc ".index(c) for c in text.ljust(9)]]])
    for cls in classes():
        assert cls(WORDS, LETTERS)(ids).tolist() == [[count]]
