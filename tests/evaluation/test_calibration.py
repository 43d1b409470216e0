"""Calibration of contrastive classifiers: the formula, the exact energy that has no error, and what chance shows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import all_sequences, joint_posterior, marginal_table, posterior_marginals, random_joint, residual_energy
from torch import Tensor

from edlm.evaluation import calibration
from edlm.evaluation.calibration import Predictions

JOINT = random_joint(0, 3, 3, 1.5)


def exact() -> tuple[Tensor, Tensor, Tensor]:
    """Data and denoiser as laws of the drafts of one state, and the residual energy between them: (d,) each."""
    state = torch.tensor([[3, 3, 0]])
    data = joint_posterior(JOINT, state).exp()[0]
    drafts = all_sequences(3, 3)[data > 0]
    proposal = posterior_marginals(JOINT, state)[0].gather(-1, drafts.T).sum(0).exp()
    return data[data > 0], proposal, residual_energy(JOINT, marginal_table(JOINT))(drafts.unsqueeze(0), state)[0]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.floats(0.1, 3)), min_size=1, max_size=12), st.integers(1, 6)
)
def test_the_error_is_the_mean_distance_of_bins_by_hand(rows, num_bins):
    total = sum(weight for _, _, weight in rows)
    expected = 0.0
    for number in range(num_bins):
        own = [row for row in rows if min(int(row[0] * num_bins), num_bins - 1) == number]
        expected += abs(sum(weight * (probability - is_data) for probability, is_data, weight in own)) / total
    predictions = Predictions(*(torch.tensor(column) for column in zip(*rows, strict=True)))
    predictions = predictions._replace(probability=predictions.probability.double(), weight=predictions.weight.double())
    assert calibration.expected_calibration_error(predictions, num_bins).error == pytest.approx(expected, abs=1e-6)


def test_either_side_of_the_pairs_has_half_the_weight_whatever_the_number_of_drafts():
    positive, negative = torch.tensor([0.0, -2.0]), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    found = calibration.of_pairs(positive, negative)
    assert found.is_data.tolist() == [True, False, False, False] * 2
    assert float(found.weight[found.is_data].sum()) == pytest.approx(float(found.weight[~found.is_data].sum()))
    torch.testing.assert_close(found.probability[4], torch.tensor(-2.0).double().neg().sigmoid())
    torch.testing.assert_close(found.probability[1], torch.tensor(-1.0).double().sigmoid())
    choices = calibration.of_choices(positive, negative)
    torch.testing.assert_close(choices.probability.view(2, 4).sum(-1), torch.ones(2).double())
    shifted = calibration.of_choices(positive + 7.0, negative + 7.0)
    torch.testing.assert_close(shifted.probability, choices.probability)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0])
def test_the_residual_energy_is_calibrated_and_a_multiple_of_it_is_not(factor):
    """Every draft weighted by its own probability under data and denoiser: no sampling, so zero is zero."""
    data, proposal, energy = exact()
    both_sides = Predictions(
        torch.sigmoid(-factor * energy).repeat(2),
        torch.tensor([True, False]).repeat_interleave(len(energy)),
        torch.cat([data, proposal]),
    )
    error = calibration.expected_calibration_error(both_sides, 20).error
    assert (error < 1e-12) == (factor == 1.0)
    assert factor == 1.0 or error > 0.02


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_so_are_its_choices_whatever_is_added_to_it(factor):
    data, proposal, energy = exact()
    first, second = torch.cartesian_prod(torch.arange(len(energy)), torch.arange(len(energy))).unbind(-1)
    found = calibration.of_choices(factor * energy[first] + 3.0, factor * energy[second].unsqueeze(-1) + 3.0)
    weight = (data[first] * proposal[second]).repeat_interleave(2)
    error = calibration.expected_calibration_error(found._replace(weight=weight), 20).error
    assert (error < 1e-12) == (factor == 1.0)


def test_a_calibrated_classifier_shows_the_floor_on_average():
    """300 samples of 1000 independent predictions; the mean lies within 3 %, and its own error is 1 %."""
    generator = torch.Generator().manual_seed(0)
    errors, floors = [], []
    for _ in range(300):
        probability = torch.rand(1000, generator=generator, dtype=torch.float64)
        is_data = torch.rand(1000, generator=generator, dtype=torch.float64) < probability
        found = calibration.expected_calibration_error(Predictions(probability, is_data, torch.ones(1000).double()))
        errors.append(found.error)
        floors.append(found.floor)
    assert sum(errors) / sum(floors) == pytest.approx(1.0, rel=0.03)


def test_no_bins_are_an_error():
    with pytest.raises(ValueError, match="num_bins = 0 must be at least 1"):
        calibration.expected_calibration_error(calibration.of_pairs(torch.zeros(2), torch.zeros(2, 1)), 0)
