"""What a run says that it has read, beside what the networks' first layers were really given."""

from collections.abc import Iterator
from contextlib import contextmanager

import identity_parts
import pytest
import torch
from covering import covering
from identity_parts import LENGTH, MASK, SEED, Case
from tensordict import TensorDict
from torch import nn

import edlm
from edlm import contracts, costs, samplers
from edlm.contracts import Reads
from edlm.models import chain_rule, energies

CASES = [each for each in identity_parts.cases() if not each.told]


@contextmanager
def counted(step: nn.Module) -> Iterator[list[int]]:
    """Tokens of every call of a network, as the first attention of each is given them."""
    first = {id(m): m for name, m in step.named_modules() if name.endswith(".trunk.blocks.0.attention.qkv")}
    calls: list[int] = []
    hooks = [
        m.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0][..., 0].numel())) for m in first.values()
    ]
    yield calls
    for hook in hooks:
        hook.remove()


def drawn(case: Case, rows: int, first_row: int = 0) -> tuple[TensorDict, list[int]]:
    pipeline = identity_parts.pipeline_of(case)
    prompt = torch.tensor([MASK, 2, MASK, MASK, 1]) if case.changed else None
    with counted(pipeline.kernel.step) as calls:
        info = edlm.sample(pipeline, rows, seed=SEED, prompt=prompt, first_row=first_row)["info"]
    return info, calls


@pytest.mark.parametrize("case", covering(CASES), ids=str)
def test_a_text_tells_every_token_that_a_network_reads_and_every_call(case: Case) -> None:
    info, calls = drawn(case, 1)
    assert int((info["denoiser_tokens"] + info["energy_tokens"]).sum()) == sum(calls)
    assert int(info["calls"].sum()) == len(calls)
    told = info["denoiser_passes"] + info["energy_passes"]
    assert float(told) == pytest.approx(sum(calls) / LENGTH, abs=1e-12)


@pytest.mark.parametrize("case", covering(CASES), ids=str)
def test_a_text_tells_the_same_whatever_is_in_its_batch(case: Case) -> None:
    together, calls = drawn(case, 3)
    for row in (0, 2):
        alone, _ = drawn(case, 1, first_row=row)
        width = alone["calls"].shape[1]
        for key in ("denoiser_tokens", "energy_tokens", "calls", "rounds", "particles"):
            assert torch.equal(together[key][row, :width], alone[key][0]), key
            assert not together[key][row, width:].any()
    told = int((together["denoiser_tokens"] + together["energy_tokens"]).sum())
    assert told <= sum(calls)
    if not case.changed and case.correction != "chain_rule":  # in order, shorter rows are padded
        assert told == sum(calls)


def test_an_energy_that_reads_more_than_a_candidate_says_so() -> None:
    plain = identity_parts.denoiser_of(Case(None, 1, "sir", "grid"))
    exact = costs.of_energy(chain_rule.exact_energy(plain))
    assert costs.tokens(exact, 3, 4, 10) == 3 * 3 * 10
    assert costs.of_energy(energies.zero()) == costs.NOTHING
    assert costs.of_energy(energies.scaled(energies.zero(), -1.0)) == costs.NOTHING
    both = energies.product(chain_rule.energy(plain), energies.zero())
    assert costs.tokens(costs.of_energy(both), 2, 3, 10) == 10 + 2 * 2 * 2
    assert costs.of_energy(object()) == Reads()


@pytest.mark.slow
@pytest.mark.parametrize("plan", identity_parts.PLANS)
@pytest.mark.parametrize("correction", [None, "draft", "transition", "chain_rule", "joint"])
@pytest.mark.parametrize("changed", [False, True])
def test_the_expected_passes_are_the_mean_of_those_that_are_told(
    plan: str, correction: str | None, changed: bool
) -> None:
    case = Case(correction, 1 if correction is None else 3, "sir", plan, changed)
    pipeline = identity_parts.pipeline_of(case)
    info = edlm.sample(pipeline, 400, seed=SEED)["info"]
    told = info["denoiser_passes"] + info["energy_passes"]
    error = max(float(told.std()) / 20.0, 1e-9)
    assert abs(float(told.mean()) - samplers.expected_passes(pipeline.sampler, LENGTH)) < 4.5 * error


def test_in_order_as_much_is_expected_as_two_candidates_read() -> None:
    """About: so many rounds does a step take."""
    ordered = identity_parts.pipeline_of(Case("chain_rule", 1, "speculative", "two a pass")).sampler
    one, two = (ordered.replace(selection="sir", candidates=count) for count in (1, 2))
    found = [samplers.expected_passes(each, LENGTH) for each in (one, ordered, two)]
    assert found[0] < found[1] == found[2]


def test_every_key_has_a_shape_and_every_stage_names_known_keys() -> None:
    keys = {value for name, value in vars(contracts).items() if name.isupper() and isinstance(value, str)}
    assert keys == set(contracts.SHAPES)
