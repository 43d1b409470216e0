"""Which settings an objective of a denoiser needs and which it does not read, and what a checkpoint says of it."""

from typing import Any

import pytest

from edlm.training import kinds

PLAIN: dict[str, Any] = {
    **{"objective": "mdlm", "loss_steps": None, "time_conditioning": False, "time_low": 0.001, "length": 8},
    "network": {},
}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"noise_levels": "by_time", "loss_weights": "nelbo"},
        {"noise_levels": "by_count", "loss_weights": "even"},
        {"noise_levels": "bell"},
        {"block": None, "time_high": 1.0},
        {"objective": "chain_rule", "loss_steps": [8, 256]},
        {"objective": "d3pm", "loss_steps": 1000},
        {"objective": "sedd", "time_conditioning": True},
        {"objective": "blocks", "block": 4},
        {"objective": "blocks", "block": 4, "loss_weights": "even"},
        {"objective": "blocks", "block": 8, "noise_levels": "by_count", "time_high": 0.5},
    ],
)
def test_these_settings_fit(changed: dict[str, Any]) -> None:
    kinds.check({**PLAIN, **changed})


STEPS = "needs the fewest and the most steps of the samplers that it is trained for, [8, 256] for example"
T = "needs the number T of steps of its loss, 1000 for example"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"loss_steps": 8}, "loss_steps = 8 must be null: objective = 'mdlm' has no steps"),
        ({"loss_steps": [8, 9]}, "loss_steps = [8, 9] must be null: objective = 'mdlm' has no steps"),
        ({"objective": "d3pm"}, f"loss_steps is null: objective = 'd3pm' {T}"),
        ({"objective": "d3pm", "loss_steps": [1, 2]}, f"loss_steps is [1, 2]: objective = 'd3pm' {T}"),
        ({"objective": "chain_rule"}, f"loss_steps is null: objective = 'chain_rule' {STEPS}"),
        ({"objective": "chain_rule", "loss_steps": 8}, f"loss_steps is 8: objective = 'chain_rule' {STEPS}"),
        (
            {"objective": "d3pm", "loss_steps": 8, "noise_levels": "by_count"},
            "objective = 'd3pm' does not know noise_levels = 'by_count': it needs noise_levels=by_time",
        ),
        (
            {"objective": "blocks", "block": 4, "noise_levels": "bell"},
            "objective = 'blocks' does not know noise_levels = 'bell': it needs noise_levels=by_time",
        ),
        (
            {"objective": "chain_rule", "loss_steps": [8, 9], "loss_weights": "even", "noise_levels": "bell"},
            "objective = 'chain_rule' does not know noise_levels = 'bell' and loss_weights = 'even': "
            "it needs noise_levels=by_time loss_weights=nelbo",
        ),
        (
            {"objective": "sedd"},
            "objective = 'sedd' needs time_conditioning = true: with sigma = 0 its scores are infinite",
        ),
        (
            {"network": {"block_size": 4}},
            "network.block_size must be left out: give the size as block, with objective = 'blocks'",
        ),
        ({"block": 4}, "block = 4 needs objective = 'blocks', not 'mdlm'"),
        ({"time_high": 0.5}, "time_high = 0.5 needs objective = 'blocks', not 'mdlm'"),
        ({"objective": "blocks"}, "block is null: objective = 'blocks' needs a number of tokens, for example 16"),
        ({"objective": "blocks", "block": 9}, "block = 9 must be at most length = 8"),
        (
            {"objective": "blocks", "block": 4, "time_conditioning": True},
            "objective = 'blocks' needs time_conditioning = false: finished blocks have no time",
        ),
        (
            {"objective": "blocks", "block": 4, "time_high": 0.001},
            "time_high = 0.001 must be above time_low = 0.001",
        ),
    ],
)
def test_these_do_not(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        kinds.check({**PLAIN, **changed})
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("changed", "note", "notes"),
    [
        ({}, "nelbo", {}),
        ({"noise_levels": "by_count", "loss_weights": "even"}, "nelbo, by_count, even", {}),
        ({"noise_levels": "by_time", "loss_weights": "nelbo"}, "nelbo", {}),
        ({"objective": "chain_rule", "loss_steps": [8, 9]}, "nelbo, in order", {"loss_steps": [8, 9]}),
        ({"objective": "blocks", "block": 4}, "nelbo of blocks", {"block": 4}),
        ({"objective": "blocks", "block": 4, "loss_weights": "even"}, "nelbo of blocks, even", {"block": 4}),
        ({"objective": "d3pm", "loss_steps": 7}, "t_step", {"parameterisation": "d3pm", "loss_steps": 7}),
        ({"objective": "sedd"}, "score_entropy", {"parameterisation": "sedd", "loss_steps": None}),
    ],
)
def test_a_checkpoint_says_what_it_was_trained_by(changed: dict[str, Any], note: str, notes: dict[str, Any]) -> None:
    assert kinds.objective_note({**PLAIN, **changed}) == note
    assert kinds.notes({**PLAIN, **changed}) == notes


def test_each_objective_is_held_to_its_own_claim() -> None:
    told = {name: (each.reading, each.claim, each.steps) for name, each in kinds.OBJECTIVES.items()}
    assert told == {
        "mdlm": ("subs", "denoiser NELBO", None),
        "chain_rule": ("subs", "denoiser NELBO", list),
        "blocks": ("subs", "denoiser NELBO", None),
        "d3pm": ("d3pm", "D3PM T-step bound", int),
        "sedd": ("sedd", "SEDD score-entropy bound", None),
    }


@pytest.mark.parametrize("value", [1, 8, [1, 1], [8, 256]])
def test_steps_of_a_loss_are_a_number_or_a_span(value: Any) -> None:
    kinds.loss_steps("loss_steps", value)
    for wrong in (0, 1.5, "8", [8], [9, 8], [0, 8]):
        with pytest.raises(ValueError, match=r"^loss_steps"):
            kinds.loss_steps("loss_steps", wrong)
