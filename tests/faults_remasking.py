"""Faults of samplers that mask tokens again, and of their enumerated laws."""

from fault import Fault

_RULES = "tests/samplers/test_remasking.py"
_STEPS = "tests/samplers/test_rewriting.py"
_LOOP = f"{_STEPS}::test_a_text_is_what_a_loop_over_its_positions_writes"

FAULTS = [
    Fault(
        "masks revealed at the plain rate though tokens are masked again",
        "samplers/remasking.py",
        "(alpha_s - (1.0 - sigma) * alpha_t) / (1.0 - alpha_t)",
        "(alpha_s - alpha_t + 0.0 * sigma) / (1.0 - alpha_t)",
        f"{_RULES}::test_the_share_of_masks_is_the_schedule_s_whatever_the_rule",
    ),
    Fault(
        "a prompt masked again",
        "samplers/remasking.py",
        "return reveal, p_written.isfinite() & (uniforms < sigma)",
        "return reveal, (x_t != mask_id) & (uniforms < sigma)",
        f"{_STEPS}::test_prompts_stay_and_no_mask_is_left",
    ),
    Fault(
        "a cap on remasking that the last step does not lower",
        "samplers/remasking.py",
        "return most(alpha_t, alpha_s).clamp(max=self.eta)",
        "return torch.full_like(alpha_t, self.eta)",
        f"{_RULES}::test_a_chance_lies_where_it_may_and_the_last_step_leaves_no_mask",
    ),
    Fault(
        "a rescaled chance that is not scaled",
        "samplers/remasking.py",
        "return self.eta * most(alpha_t, alpha_s)",
        "return most(alpha_t, alpha_s).clamp(max=self.eta + 0.0)",
        f"{_RULES}::test_the_published_formulas_at_a_few_numbers",
    ),
    Fault(
        "confident tokens masked again first",
        "samplers/remasking.py",
        "share = (-p_written).softmax(-1)",
        "share = torch.where(p_written.isfinite(), p_written, -torch.inf).softmax(-1)",
        f"{_RULES}::test_the_published_formulas_at_a_few_numbers",
    ),
    Fault(
        "a token that is masked again is remembered as written",
        "samplers/remasking.py",
        "p_written.masked_fill(remask, torch.inf)",
        "p_written",
        _LOOP,
    ),
    Fault(
        "the probability of a token under the tempered law remembered as the denoiser's",
        "samplers/stages.py",
        "categorical.token_log_prob(logits, drawn.tokens), drawn.log_prob",
        "drawn.log_prob, drawn.log_prob",
        _LOOP,
    ),
    Fault(
        "a loop that goes on while it rewrites",
        "samplers/remasking.py",
        "still * grid / self.t_off, still)",
        "still * grid / self.t_off, still * grid / self.t_on)",
        f"{_RULES}::test_a_loop_goes_to_its_share_stays_and_ends",
    ),
    Fault(
        "forward and backward steps without the highest chance",
        "samplers/remasking.py",
        "torch.minimum((alpha_s - alpha_t) / alpha_t, highest)",
        "(alpha_s - alpha_t) / alpha_t",
        f"{_RULES}::test_a_chance_lies_where_it_may_and_the_last_step_leaves_no_mask",
    ),
    Fault(
        "what is masked again decided by the same numbers in every step",
        "samplers/rewriting.py",
        "noise.grid(seed, row, number, Stream.REVEAL",
        "noise.grid(seed, row, 0, Stream.REVEAL",
        _LOOP,
    ),
    Fault(
        "the denoiser told the end of a step",
        "samplers/rewriting.py",
        "reveal, float(times[p]), seed",
        "reveal, float(times[p + 1]), seed",
        _LOOP,
    ),
    Fault(
        "windows of a rewritten text share noise where they have more steps than tokens",
        "samplers/rewriting.py",
        "first = first_pass // tokens.shape[1] * num_steps",
        "first = first_pass",
        f"{_STEPS}::test_windows_of_a_long_text_share_no_noise_and_keep_what_is_written",
    ),
    Fault(
        "the network run for rows that reveal nothing",
        "samplers/rewriting.py",
        "[: min(b, pad_rows(running))]",
        "[:b]",
        f"{_STEPS}::test_only_steps_that_reveal_something_run_the_network_and_a_callback_sees_all",
    ),
    Fault(
        "expected passes of single tokens",
        "samplers/remasking.py",
        "(1.0 - written).clamp(min=0.0) ** length",
        "(1.0 - written).clamp(min=0.0)",
        f"{_STEPS}::test_expected_passes_are_means_of_the_passes_taken",
    ),
    Fault(
        "remasking without steps accepted",
        "samplers/remasking.py",
        'if getattr(plan, "times", None) is not None:',
        "if plan is not None:",
        f"{_RULES}::test_what_makes_no_sense_is_refused_with_the_reason",
    ),
    Fault(
        "a bound claimed of a sampler that masks tokens again",
        "likelihood/bounds.py",
        "if sampler.remasking is not None:",
        "if False:",
        f"{_STEPS}::test_no_bound_is_claimed",
    ),
    Fault(
        "an enumerated token that is masked again stays as well",
        "likelihood/rewritten.py",
        "[(1.0 - sigma) * flow, sigma",
        "[flow, sigma",
        "tests/likelihood/test_rewritten.py::test_a_step_is_the_sum_over_all_pairs_of_states",
    ),
    Fault(
        "enumerated positions in the order of visible and masked ones",
        "likelihood/rewritten.py",
        "after += flow.permute([[*visible, *masked].index(i) for i in range(length)])",
        "after += flow",
        "tests/likelihood/test_rewritten.py::test_a_step_is_the_sum_over_all_pairs_of_states",
    ),
    Fault(
        "rows that only pad a step counted as read",
        "samplers/rewriting.py",
        "torch.where(counts, out[key], 0)",
        "out[key]",
        "tests/samplers/test_rewriting.py::test_padded_steps_give_the_same_tokens_and_records",
    ),
]
