"""Faults of optimisers and of the draws of noise in training."""

from fault import Fault

FAULTS = [
    Fault(
        "Muon without its momentum",
        "training/muon.py",
        'step = orthogonalised(gradient + group["momentum"] * moved)',
        "step = orthogonalised(gradient)",
        "tests/training/test_muon.py::test_a_step_is_the_rate_times_the_orthogonal_momentum",
    ),
    Fault(
        "singular values left as they are",
        "training/muon.py",
        "for _ in range(_ITERATIONS):",
        "for _ in range(0):",
        "tests/training/test_muon.py::test_singular_values_become_about_one_and_directions_stay",
    ),
    Fault(
        "a noise level's matrices stepped as hidden ones",
        "training/muon.py",
        " and _CONDITIONING not in name",
        "",
        "tests/training/test_muon.py::test_hidden_are_the_matrices_of_blocks_that_read_a_text",
    ),
    Fault(
        "AdamW beside Muon without the state that was loaded",
        "training/muon.py",
        "        self._others.state = self.state\n",
        "",
        "tests/training/test_muon.py::test_a_loaded_state_goes_on_as_if_it_had_not_stopped",
    ),
    Fault(
        "levels in a bell weighed as uniform ones",
        "objectives/denoising.py",
        "(masked.clamp(min=1.0 / x_0.shape[1]) * density)",
        "masked.clamp(min=1.0 / x_0.shape[1])",
        "tests/objectives/test_noise_levels.py::test_the_mean_loss_is_the_nelbo",
    ),
    Fault(
        "one mask too few by counts",
        "process/absorbing.py",
        "return rank < m, m",
        "return rank < m - 1, m",
        "tests/objectives/test_noise_levels.py::test_counts_are_stratified_and_padding_is_never_masked",
    ),
    Fault(
        "even weights weighed by the NELBO",
        "objectives/denoising.py",
        'stage("weight -> weight", torch.ones_like)',
        'stage("weight -> weight", torch.clone)',
        "tests/objectives/test_noise_levels.py::test_even_weights_give_the_cross_entropy_of_the_masks",
    ),
    Fault(
        "hidden matrices that decay whatever their rate is",
        "training/muon.py",
        'weight.mul_(1.0 - group["lr"] * group["weight_decay"])',
        'weight.mul_(1.0 - group["weight_decay"])',
        "tests/training/test_muon.py::test_hidden_matrices_decay_in_proportion_to_their_rate",
    ),
    Fault(
        "a denoiser made of an AR model trained at other levels than it says",
        "training/adaptation.py",
        ', noise_levels="by_count"',
        "",
        "tests/recipes/test_adapt.py::test_noise_levels_are_drawn_by_count_and_bytes_are_counted_by_token",
    ),
    Fault(
        "bits per character by the tokens of texts that are not scored",
        "training/report.py",
        "blocks.test[:rows]",
        "blocks.test[:_MOST]",
        "tests/training/test_training_report.py::test_only_the_blocks_that_a_network_is_scored_on_are_measured",
    ),
]
