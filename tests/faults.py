"""Faults to plant in a copy of the package, each with the test that must catch it; see `test_planted_faults.py`.

`published` are the known faults of the published implementation, in the words of `docs/departures.md`; `own` are ones
that are easily made. A fault is one replacement in one file, whose old text must be there exactly once.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """What goes wrong, where it is planted, and which test fails then."""

    name: str
    file: str
    old: str
    new: str
    caught_by: str


PUBLISHED = [
    Fault(
        "resampling weights softmax(+E)",
        "particles.py",
        "return -energy.to(",
        "return energy.to(",
        "tests/test_particles.py::test_log_weights_are_minus_energy_over_temperature_in_float64",
    ),
    Fault(
        "probabilities handed to the AR energy as log-probabilities",
        "energies.py",
        "log_p_candidates.double()",
        "log_p_candidates.double().exp()",
        "tests/test_residual_ar.py::test_it_is_the_exact_energy",
    ),
    Fault(
        "candidates laid out (k, b) and read as (b, k)",
        "energies.py",
        "x_0 = candidates.flatten(0, 1)",
        "x_0 = candidates.transpose(0, 1).flatten(0, 1)",
        "tests/test_energies.py::test_each_particle_is_weighed_against_the_masks_of_its_own_row",
    ),
    Fault(
        "noise of a draw in the logits' own precision",
        "categorical.py",
        "target = uniforms * total",
        "target = uniforms.bfloat16().double() * total",
        "tests/test_categorical.py::test_in_float64_the_inverse_is_exact",
    ),
    Fault(
        "frozen proposal in train mode while negatives are drawn",
        "pipelines.py",
        "super().train(False)",
        "super().train(mode)",
        "tests/test_pipelines.py::test_the_denoiser_of_contrast_is_frozen_in_eval_mode",
    ),
    Fault(
        "raw weights where EMA weights belong",
        "recipes/_training.py",
        "self.folder, self.step, self.average",
        "self.folder, self.step, self.network",
        "tests/test_recipes.py::test_a_checkpoint_holds_the_averaged_weights",
    ),
    Fault(
        "NCE as log(sigmoid + 1e-8)",
        "objectives.py",
        "return F.softplus(energy_positive)",
        "return -(torch.sigmoid(-energy_positive) + 1e-8).log()",
        "tests/test_objectives.py::test_gradients_stay_finite_and_alive_where_the_energy_is_most_wrong",
    ),
    Fault(
        "log Z from one sample",
        "particles.py",
        "return log_weights.logsumexp(-1) - math.log(log_weights.shape[-1])",
        "return log_weights[..., 0]",
        "tests/test_particles.py::test_log_mean_weight_is_the_log_of_the_mean_weight",
    ),
    Fault(
        "t passed where sigma is expected",
        "denoisers.py",
        "schedules.sigma(self.schedule, t)",
        "t",
        "tests/test_denoisers.py::test_with_a_schedule_the_network_is_told_minus_log_alpha",
    ),
    Fault(
        "masks left over at the end of the grid",
        "absorbing.py",
        "inner = still_masked[1:-1].flip(0).contiguous()",
        "inner = (still_masked[1:-1] * 0.99 + 0.001).flip(0).contiguous()",
        "tests/test_absorbing.py::test_a_plan_reveals_a_mask_with_the_chance_of_the_ancestral_sampler",
    ),
    Fault(
        "empty steps are run (no notion of nothing moved)",
        "absorbing.py",
        "passes = used.sum(-1)",
        "passes = used.sum(-1) * 0 + num_steps",
        "tests/test_absorbing.py::test_a_row_needs_no_more_passes_than_it_has_steps_or_masks",
    ),
    Fault(
        "T-step loss not finite at the grid's end",
        "objectives.py",
        "possible = alpha_t < 1.0",
        "possible = alpha_t < 2.0",
        "tests/test_objectives.py::test_t_step_losses_and_their_gradients_are_finite_at_the_ends_of_the_grid",
    ),
    Fault(
        "padding counts in an energy",
        "energies.py",
        "            counts = counts & (x_t != self.pad_id)\n",
        "            pass\n",
        "tests/test_residual_ar.py::test_padding_counts_in_neither_part",
    ),
    Fault(
        "position 0 in one part of the AR energy only",
        "energies.py",
        "            counts = counts & (torch.arange(x_t.shape[1], device=x_t.device) > 0)\n",
        "            pass\n",
        "tests/test_residual_ar.py::test_without_a_bos_position_0_is_left_out_of_both_parts",
    ),
    Fault(
        "one moving row makes every row pay",
        "absorbing.py",
        "    order = torch.where(masked, (used",
        "    used = used.any(0, keepdim=True).expand_as(used)\n    order = torch.where(masked, (used",
        "tests/test_absorbing.py::test_every_pass_reveals_something",
    ),
    Fault(
        "a draw is discarded before the one that counts",
        "samplers.py",
        "absorbing.reveal(x_t, _keep(candidates, chosen), positions)",
        "absorbing.reveal(x_t, candidates[:, 0], positions)",
        "tests/test_samplers.py::test_energy_decides",
    ),
    Fault(
        "SEDD with sigma zeroed",
        "denoisers.py",
        '    if schedule is None:\n        raise ValueError("sedd',
        '    if False:\n        raise ValueError("sedd',
        "tests/test_denoisers.py::test_scores_without_a_noise_level_are_refused",
    ),
    Fault(
        "the last partial batch is dropped",
        "recipes/generate.py",
        "for first in range(done, total, settings",
        'for first in range(done, total - total % settings["batch_size"], settings',
        "tests/test_recipes.py::test_every_sample_is_written_whatever_the_batch_size",
    ),
    Fault(
        "masking at t = 1 differs between training and sampling",
        "absorbing.py",
        "/ (1.0 - _alpha_at_one(schedule, grid))",
        "",
        "tests/test_absorbing.py::test_a_plan_reveals_a_mask_with_the_chance_of_the_ancestral_sampler",
    ),
]

OWN = [
    Fault(
        "plan off by one step",
        "absorbing.py",
        "return grid.shape[0] - 2 - torch",
        "return grid.shape[0] - 3 - torch",
        "tests/test_absorbing.py::test_one_step_reveals_everything_at_once",
    ),
    Fault(
        "alpha and 1 - alpha swapped",
        "absorbing.py",
        "masked = uniforms < (1.0 - alpha)",
        "masked = uniforms < (alpha)",
        "tests/test_absorbing.py::test_nothing_is_masked_at_alpha_one_and_everything_at_alpha_zero",
    ),
    Fault(
        "reveal times rise instead of falling",
        "absorbing.py",
        "schedule.inverse(1.0 - uniforms *",
        "schedule.inverse(uniforms *",
        "tests/test_absorbing.py::test_a_larger_uniform_is_revealed_earlier_and_all_inside_the_unit_interval",
    ),
    Fault(
        "corruption masks what must be kept",
        "absorbing.py",
        "masked = masked & ~keep",
        "masked = masked",
        "tests/test_absorbing.py::test_positions_to_keep_are_never_masked",
    ),
    Fault(
        "carry-over missing",
        "absorbing.py",
        "return torch.where(positions, draft, x_t)",
        "return draft",
        "tests/test_absorbing.py::test_revealing_takes_the_draft_at_the_positions_and_nothing_else",
    ),
    Fault(
        "a step reveals the pass before its own",
        "pipelines.py",
        "revealed = plan.order == p\n",
        "revealed = plan.order == max(p - 1, 0)\n",
        "tests/test_samplers.py::test_a_pass_fills_masks_and_changes_nothing_else",
    ),
    Fault(
        "window inverted",
        "pipelines.py",
        "inside = (plan.t >= low - _TIME_ROUNDING) & (plan.t <= high + _TIME_ROUNDING)",
        "inside = (1 - plan.t >= low) & (1 - plan.t <= high)",
        "tests/test_pipelines.py::test_info_counts_passes_and_times",
    ),
    Fault(
        "window open at its upper end",
        "pipelines.py",
        "(plan.t <= high + _TIME_ROUNDING)",
        "(plan.t < high - _TIME_ROUNDING)",
        "tests/test_pipelines.py::test_a_window_includes_the_times_of_the_grid_at_its_ends",
    ),
    Fault(
        "the energy used outside its window",
        "samplers.py",
        "torch.where(corrected, self.selection(log_weights, uniforms), 0)",
        "self.selection(log_weights, uniforms)",
        "tests/test_samplers.py::test_a_row_outside_the_window_keeps_its_first_candidate_whatever_the_energies",
    ),
    Fault(
        "dropout left on while sampling",
        "pipelines.py",
        "    _check_evaluating(kernel.step)\n",
        "",
        "tests/test_pipelines.py::test_dropout_left_on_is_an_error",
    ),
    Fault(
        "rows of a later batch reuse the first one's noise",
        "pipelines.py",
        "torch.arange(first_row, first_row + b, device=device)",
        "torch.arange(0, b, device=device)",
        "tests/test_samplers.py::test_seeds_and_rows_give_different_samples",
    ),
    Fault(
        "noise reused between steps",
        "samplers.py",
        "noise.uniforms(seed, owner, step, Stream.PROPOSAL",
        "noise.uniforms(seed, owner, 0, Stream.PROPOSAL",
        "tests/test_samplers.py::test_no_two_draws_share_a_number",
    ),
    Fault(
        "noise reused between particles",
        "noise.py",
        "return lanes.flatten(-2)[..., :count]",
        "return lanes.flatten(-2)[..., :1].expand(*lanes.shape[:-2], count)",
        "tests/test_samplers.py::test_no_two_draws_share_a_number",
    ),
    Fault(
        "float32 uniforms",
        "noise.py",
        "bits.to(torch.float64) + 0.5",
        "bits.to(torch.float32) + 0.5",
        "tests/test_noise.py::test_a_uniform_is_its_blocks_top_52_bits",
    ),
    Fault(
        "a stream missing from the key",
        "noise.py",
        "+ int(stream) * _BLOCKS_PER_STREAM",
        "",
        "tests/test_noise.py::test_any_other_seed_row_step_stream_or_position_gives_other_numbers",
    ),
    Fault(
        "the seed's upper half ignored",
        "noise.py",
        "(seed >> 32) & _LOW_32",
        "0",
        "tests/test_noise.py::test_any_other_seed_row_step_stream_or_position_gives_other_numbers",
    ),
    Fault(
        "nine rounds of Philox",
        "noise.py",
        "_ROUNDS = 10",
        "_ROUNDS = 9",
        "tests/test_noise.py::test_philox_gives_the_published_answers",
    ),
    Fault(
        "temperature of the energy inverted",
        "particles.py",
        ".to(torch.float64) / temperature",
        ".to(torch.float64) * temperature",
        "tests/test_particles.py::test_log_weights_are_minus_energy_over_temperature_in_float64",
    ),
    Fault(
        "weights not normalised in SIR",
        "particles.py",
        "target = uniforms[:, :1] * cumulative[:, -1:]",
        "target = uniforms[:, :1]",
        "tests/test_particles.py::test_sir_keeps_a_particle_with_its_share_of_the_weight",
    ),
    Fault(
        "ESS without the square",
        "particles.py",
        "log_ess = 2.0 * log_weights.logsumexp(-1)",
        "log_ess = log_weights.logsumexp(-1)",
        "tests/test_particles.py::test_ess_of_even_and_of_one_sided_weights",
    ),
    Fault(
        "Metropolis-Hastings accepts the worse",
        "particles.py",
        "< log_weights[:, j] - current",
        "< current - log_weights[:, j]",
        "tests/test_particles.py::test_imh_moves_to_a_second_particle_with_the_ratio_of_weights",
    ),
    Fault(
        "Metropolis-Hastings compares with the first for ever",
        "particles.py",
        "        current = torch.where(accepted, log_weights[:, j], current)\n",
        "",
        "tests/test_particles.py::test_imh_goes_through_three_particles_in_their_order",
    ),
    Fault(
        "greedy takes the highest energy",
        "particles.py",
        "return log_weights.argmax(-1)",
        "return log_weights.argmin(-1)",
        "tests/test_particles.py::test_greedy_keeps_the_lowest_energy_and_the_first_of_several",
    ),
    Fault(
        "leave-one-out with n for n - 1",
        "particles.py",
        "(others.logsumexp(-1) - math.log(n - 1))",
        "(others.logsumexp(-1) - math.log(n))",
        "tests/test_particles.py::test_the_leave_one_out_pair_is_that_of_its_formula",
    ),
    Fault(
        "wrong axis in the gather of the chosen particle",
        "samplers.py",
        "candidates.gather(1, index)",
        "candidates.flip(1).gather(1, index)",
        "tests/test_samplers.py::test_energy_decides",
    ),
    Fault(
        "proposal temperature inverted",
        "samplers.py",
        "logits / self.temperature",
        "logits * self.temperature",
        "tests/test_samplers.py::test_temperature_of_plain_sampling_divides_the_logits",
    ),
    Fault(
        "the mask can be drawn",
        "denoisers.py",
        "logits.masked_fill(columns == self.mask_id, -torch.inf)",
        "logits",
        "tests/test_denoisers.py::test_the_mask_is_never_drawn",
    ),
    Fault(
        "sums over the vocabulary in float32",
        "categorical.py",
        "blocks.sum(-1, dtype=torch.float64).cumsum(-1)",
        "blocks.sum(-1).cumsum(-1).double()",
        "tests/test_categorical.py::test_float32_logits_keep_a_tail_of_one_in_a_million",
    ),
    Fault(
        "a draw takes the token before its own",
        "categorical.py",
        "return torch.searchsorted(cumulative, target, right=True).minimum(last)",
        "return torch.searchsorted(cumulative, target, right=False).minimum(last)",
        "tests/test_categorical.py::test_block_edges_belong_to_the_block_above",
    ),
    Fault(
        "log-probability of a draw not normalised",
        "categorical.py",
        "shifted.gather(-1, tokens) - total.log().to(shifted.dtype)",
        "shifted.gather(-1, tokens)",
        "tests/test_categorical.py::test_log_prob_is_the_log_softmax_at_the_token",
    ),
    Fault(
        "slope of the schedule without its rate",
        "schedules.py",
        "torch.full_like(t, -rate)",
        "torch.full_like(t, -1.0)",
        "tests/test_schedules.py::test_the_slope_is_the_derivative",
    ),
    Fault(
        "NELBO weight over alpha instead of 1 - alpha",
        "schedules.py",
        "/ (1.0 - schedule.alpha(t))",
        "/ schedule.alpha(t)",
        "tests/test_schedules.py::test_the_nelbo_weight_of_the_log_linear_schedule_is_one_over_t_whatever_eps",
    ),
    Fault(
        "times not stratified",
        "schedules.py",
        "((uniforms + row) / num_rows)",
        "(uniforms)",
        "tests/test_schedules.py::test_every_stratum_holds_one_time",
    ),
    Fault(
        "NELBO averaged over positions instead of summed",
        "objectives.py",
        "* -log_prob.sum(-1)",
        "* -log_prob.mean(-1)",
        "tests/test_objectives.py::test_the_nelbo_has_its_expectation_over_times_and_masks",
    ),
    Fault(
        "NCE with its sides swapped",
        "objectives.py",
        "F.softplus(energy_positive) + F.softplus(-energy_negative)",
        "F.softplus(-energy_positive) + F.softplus(energy_negative)",
        "tests/test_objectives.py::test_nce_is_the_cross_entropy_of_telling_data_from_drafts",
    ),
    Fault(
        "NCE sums over negatives",
        "objectives.py",
        "F.softplus(-energy_negative).mean(-1)",
        "F.softplus(-energy_negative).sum(-1)",
        "tests/test_objectives.py::test_the_optimum_is_the_residual_energy_whatever_the_number_of_negatives",
    ),
    Fault(
        "ranking NCE takes the last for the data",
        "objectives.py",
        "return -scores.log_softmax(-1)[..., 0]",
        "return -scores.log_softmax(-1)[..., -1]",
        "tests/test_objectives.py::test_info_nce_is_the_cross_entropy_of_finding_the_data_whatever_is_added_to_all",
    ),
    Fault(
        "a pass divided by all positions instead of its masks",
        "likelihoods.py",
        ".view_as(x_0).sum(1) / masked.sum(1)",
        ".view_as(x_0).sum(1) / x_0.shape[1]",
        "tests/test_likelihoods.py::test_with_the_true_posterior_the_nelbo_is_the_entropy",
    ),
    Fault(
        "causal mask missing",
        "networks.py",
        "is_causal=self.causal",
        "is_causal=False",
        "tests/test_networks.py::test_a_causal_network_lets_no_position_see_a_later_token",
    ),
    Fault(
        "keys not rotated",
        "networks.py",
        "_rotate(k, *rotary)",
        "k",
        "tests/test_networks.py::test_attention_is_a_softmax_over_pairs_turned_by_their_distance",
    ),
    Fault(
        "shift and scale swapped",
        "networks.py",
        "shift, scale = self.modulation(conditioning)",
        "scale, shift = self.modulation(conditioning)",
        "tests/test_networks.py::test_folded_conditioning_is_the_same_function",
    ),
    Fault(
        "bos counted twice: the AR model sees the token it predicts",
        "energies.py",
        "F.pad(tokens[:, :-1], (1, 0), value=bos_id)",
        "tokens",
        "tests/test_residual_ar.py::test_it_is_the_exact_energy",
    ),
    Fault(
        "carry-over form counts visible tokens",
        "energies.py",
        "counts = x_t == self.mask_id if self.carry_over else",
        "counts = torch.ones_like(x_t, dtype=torch.bool) if self.carry_over else",
        "tests/test_residual_ar.py::test_the_normaliser_of_the_carry_over_form_is_one",
    ),
    Fault(
        "the data is not candidate 0",
        "pipelines.py",
        "torch.cat([x_0.unsqueeze(1), drafts], dim=1)",
        "torch.cat([drafts, x_0.unsqueeze(1)], dim=1)",
        "tests/test_pipelines.py::test_contrast_is_the_objective_of_the_data_and_its_drafts",
    ),
    Fault(
        "an epoch repeats the order of the first",
        "corpora.py",
        "noise.permutation(seed, epoch, size)",
        "noise.permutation(seed, 0, size)",
        "tests/test_corpora.py::test_epochs_and_seeds_have_orders_of_their_own",
    ),
    Fault(
        "optimiser state forgotten on resume",
        "recipes/_training.py",
        '        self.optimizer.load_state_dict(state["optimizer"])\n',
        "",
        "tests/test_recipes.py::test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit",
    ),
    Fault(
        "EMA forgotten on resume",
        "recipes/_training.py",
        '        self.ema.n_averaged.fill_(state["averaged"])\n',
        "",
        "tests/test_recipes.py::test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit",
    ),
    Fault(
        "the step's dropout not seeded",
        "recipes/_training.py",
        "        torch.manual_seed(self.seed * 1_000_003 + self.step)",
        "        torch.seed()",
        "tests/test_recipes.py::test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit",
    ),
]


def table() -> str:
    """The faults and the tests that catch them, as `docs/testing.md` shows them."""
    rows = [f"| {fault.name} | `{fault.caught_by.removeprefix('tests/')}` |" for fault in (*PUBLISHED, *OWN)]
    return "\n".join(["| planted fault | caught by |", "|---|---|", *rows])


if __name__ == "__main__":
    print(table())
