"""Which arguments make a network, up to their last values."""

from typing import Any

import pytest

from edlm import limits
from edlm.nn import sizes

PLAIN = {"vocab_size": 5, "max_length": 8, "hidden_size": 4, "num_layers": 2, "num_heads": 1}
PLAIN |= {"conditioning_size": 0, "dropout": 0.0}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        *({name: 1} for name in ("vocab_size", "max_length", "hidden_size", "num_layers", "num_heads")),
        {"num_energy_layers": 1},
        {"conditioning_size": 0},
        {"causal": True},
        {"causal": False, "norm_bias": True},
        {"dropout": 0},
        {"dropout": 0.999},
        {"block_size": None},
        {"block_size": 1},
        {"block_size": 4, "causal": False},
    ],
)
def test_these_make_one(changed: dict[str, Any]) -> None:
    sizes.require_sizes({**PLAIN, **changed})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        *(({name: 0}, f"{name} = 0 must be at least 1") for name in PLAIN if not name.startswith(("cond", "drop"))),
        ({"num_energy_layers": 0}, "num_energy_layers = 0 must be at least 1"),
        ({"conditioning_size": -1}, "conditioning_size = -1 must be at least 0"),
        *(({name: 2.0}, f"{name} = 2.0 must be a whole number") for name in PLAIN if name != "dropout"),
        ({"num_heads": True}, "num_heads = True must be a whole number"),
        ({"causal": 1}, "causal = 1 must be true or false"),
        ({"norm_bias": "no"}, "norm_bias = 'no' must be true or false"),
        ({"dropout": 1}, "dropout = 1 must be a number of at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout = -0.1 must be a number of at least 0 and below 1"),
        ({"dropout": True}, "dropout = True must be a number of at least 0 and below 1"),
        ({"block_size": 0}, "block_size = 0 must be a whole number of at least 1, or null"),
        ({"block_size": 2.0}, "block_size = 2.0 must be a whole number of at least 1, or null"),
        ({"block_size": 2, "causal": True}, "block_size = 2 needs causal = false: a block is read in both directions"),
    ],
)
def test_these_make_none(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        sizes.require_sizes({**PLAIN, **changed})
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("limit", "changed"),
    [
        ("LAYERS", {"num_layers": 3, "num_energy_layers": 2}),
        ("LENGTH", {"max_length": 5}),
        ("PARAMETERS", {"hidden_size": 1, "num_layers": 1, "vocab_size": 2, "conditioning_size": 0}),
    ],
)
def test_a_limit_is_allowed_and_one_more_is_not(
    limit: str, changed: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 weights: 12 of one block of width 1, and an embedding and a head of 2 rows."""
    most = {"LAYERS": 5, "LENGTH": 5, "PARAMETERS": 16}[limit]
    monkeypatch.setattr(limits, limit, most)
    sizes.require_sizes({**PLAIN, **changed})
    monkeypatch.setattr(limits, limit, most - 1)
    with pytest.raises(limits.TooLarge, match=f"network: .*{limit.lower().replace('length', 'max_length')}"):
        sizes.require_sizes({**PLAIN, **changed})


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        ({"vocab_size": 3, "hidden_size": 2, "num_layers": 1, "conditioning_size": 0}, 48 + 12),
        ({"vocab_size": 3, "hidden_size": 2, "num_layers": 2, "conditioning_size": 0}, 96 + 12),
        ({"vocab_size": 3, "hidden_size": 2, "num_layers": 2, "conditioning_size": 3}, 96 + 12 + 3 * (24 + 3)),
        (
            {"vocab_size": 3, "hidden_size": 2, "num_layers": 2, "num_energy_layers": 1, "conditioning_size": 0},
            144 + 12,
        ),
    ],
)
def test_weights_are_counted_before_there_are_any(
    arguments: dict[str, int], parameters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = {}
    monkeypatch.setattr(limits, "require", lambda where, what, size, most: counted.update({what: size}))
    sizes.require_sizes({**PLAIN, **arguments})
    assert counted["parameters"] == parameters


def test_a_pad_is_an_id_or_none() -> None:
    assert [sizes.checked_id(pad_id, 3) for pad_id in (None, 0, 2)] == [None, 0, 2]
    for pad_id in (-1, 3):
        with pytest.raises(ValueError, match=f"^pad_id = {pad_id} is outside the network's vocabulary of 3$"):
            sizes.checked_id(pad_id, 3)
    assert sizes.own_arguments({"self": 1, "__class__": 2, "a": 3}) == {"a": 3}
