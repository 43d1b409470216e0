"""Calibration of a contrastive classifier: whether its probabilities are frequencies, as an energy's size claims.

A trained energy separates data from drafts with `P(data) = sigmoid(-E)` (binary), or picks the data among all with
`softmax(-E)` (ranking). At the optimum these are frequencies. An energy twice too large orders texts as well, but its
probabilities are no frequencies.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Predictions(NamedTuple):
    """Probabilities of being data (m,), whether each was, bool (m,), and how much each counts (m,); float64."""

    probability: Tensor
    is_data: Tensor
    weight: Tensor


class CalibrationError(NamedTuple):
    """The error in [0, 1], and `floor`: what so many predictions of a calibrated classifier show by chance."""

    error: float
    floor: float


def of_pairs(energy_positive: Tensor, energy_negative: Tensor) -> Predictions:
    """Collect predictions of the binary classifier, `sigmoid(-E)`: data (b,) and drafts (b, n), each half the weight.

    Calibrated where `exp(-E)` is the ratio of data to denoiser (`losses.nce`).
    """
    energies = torch.cat([energy_positive.unsqueeze(-1), energy_negative], dim=-1).double()
    weight = torch.full_like(energies, 1.0 / energy_negative.shape[-1])
    return Predictions(torch.sigmoid(-energies).flatten(), _first_of_each(energies), _first_set(weight, 1.0).flatten())


def of_choices(energy_positive: Tensor, energy_negative: Tensor) -> Predictions:
    """Collect predictions of the ranking classifier, `softmax(-E)` over the data (b,) and its drafts (b, n).

    Calibrated where `exp(-E)` is the ratio up to a factor per `x_t` (`losses.info_nce`).
    """
    energies = torch.cat([energy_positive.unsqueeze(-1), energy_negative], dim=-1).double()
    return Predictions((-energies).softmax(-1).flatten(), _first_of_each(energies), torch.ones_like(energies).flatten())


def expected_calibration_error(predictions: Predictions, num_bins: int = 10) -> CalibrationError:
    """Compute `sum_bins share |mean probability - frequency|` over equal bins of [0, 1] (Guo et al. 2017, eq. 3).

    The floor is the same sum with, in each bin, the mean deviation of a normal law of variance `sum w^2 p (1 - p)`: it
    takes predictions as independent, and drafts of one text are not quite. Raises ValueError if num_bins < 1.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins = {num_bins} must be at least 1")
    probability, is_data, weight = predictions
    number = (probability * num_bins).long().clamp(max=num_bins - 1)

    def of_bins(values: Tensor) -> Tensor:
        return values.new_zeros(num_bins).index_add(0, number, values)

    gap = of_bins(weight * (probability - is_data.double())).abs().sum() / weight.sum()
    variance = of_bins(weight.square() * probability * (1.0 - probability))
    floor = (variance * 2.0 / math.pi).sqrt().sum() / weight.sum()
    return CalibrationError(float(gap), float(floor))


def _first_set(values: Tensor, value: float) -> Tensor:
    return torch.cat([torch.full_like(values[:, :1], value), values[:, 1:]], dim=1)


def _first_of_each(values: Tensor) -> Tensor:
    return _first_set(torch.zeros_like(values), 1.0).flatten().bool()
