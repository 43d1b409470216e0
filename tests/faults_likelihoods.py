"""Faults of exact likelihoods, of bounds of several orders, and of what compares them."""

from fault import Fault

_EXACT, _ORDERS, _CURVE = (
    f"tests/{name}::" for name in ("likelihood/test_exact.py", "likelihood/test_orders.py", "frontier/test_curve.py")
)

FAULTS = [
    Fault(
        "an exact likelihood in order asks the first new token for one before it",
        "likelihood/steps.py",
        "torch.where(number > 0)",
        "torch.where(number >= 0)",
        f"{_EXACT}test_in_order_it_is_the_law_of_all_that_can_happen",
    ),
    Fault(
        "an exact likelihood that shows a token itself, as if it were given",
        "likelihood/steps.py",
        "found[later].to(hidden)",
        "found[later].roll(-1, 0).to(hidden)",
        f"{_EXACT}test_in_order_it_is_the_law_of_all_that_can_happen",
    ),
    Fault(
        "an exact likelihood in order outside the window too",
        "likelihood/steps.py",
        "inside = schedules.inside(taken[contracts.T], sampler.window)",
        "inside = torch.ones_like(count, dtype=torch.bool)",
        f"{_EXACT}test_a_pass_that_starts_outside_the_window_is_plain",
    ),
    Fault(
        "an exact likelihood of the denoiser's law, and not of what is drawn from",
        "likelihood/steps.py",
        "stages.Law(sampler.denoiser, *sampler.proposal)",
        "stages.Law(sampler.denoiser, 1.0, 1.0)",
        f"{_EXACT}test_temperature_and_nucleus_are_a_part_of_the_law",
    ),
    Fault(
        "a rule that is followed by the denoiser's law, and not by what is drawn from",
        "likelihood/exact.py",
        "stages.Law(denoiser, *sampler.proposal)",
        "stages.Law(denoiser, 1.0, 1.0)",
        f"{_EXACT}test_temperature_and_nucleus_are_a_part_of_the_law",
    ),
    Fault(
        "an exact likelihood of what is given too",
        "likelihood/exact.py",
        "masked, order = wanted, torch",
        "masked, order = torch.ones_like(wanted), torch",
        f"{_EXACT}test_what_is_given_stays_and_is_not_scored",
    ),
    Fault(
        "a rule that is followed at the time of what is written",
        "likelihood/exact.py",
        "absorbing.time_of_share(hidden.sum(-1)",
        "absorbing.time_of_share((~hidden).sum(-1)",
        f"{_EXACT}test_a_pass_is_at_the_time_at_which_the_sampler_takes_it",
    ),
    Fault(
        "an exact likelihood where candidates are weighed",
        "likelihood/steps.py",
        "sampler.chooses.in_order or sampler.candidates == 1:",
        "sampler.chooses.in_order or sampler.most >= 1:",
        f"{_EXACT}test_what_has_no_exact_likelihood_is_refused_with_the_reason",
    ),
    Fault(
        "a bound along a path that does not count how the path was found",
        "likelihood/bounds.py",
        "denoiser_passes=found.denoiser_passes + plan.passes",
        "denoiser_passes=found.denoiser_passes",
        f"{_EXACT}test_the_bound_of_a_rule_without_candidates_is_exact",
    ),
    Fault(
        "K orders that are one",
        "likelihood/orders.py",
        "noise.grid(seed, row, k, ",
        "noise.grid(seed, row, 0, ",
        f"{_ORDERS}test_each_order_is_a_plan_of_its_own_and_is_paid_for",
    ),
    Fault(
        "K orders averaged outside the logarithm",
        "likelihood/orders.py",
        "return log_p.logsumexp(-1) - math.log(log_p.shape[-1])",
        "return log_p.mean(-1)",
        f"{_ORDERS}test_draws_have_the_ends_as_their_means",
    ),
    Fault(
        "a psi that knows the order it bounds",
        "likelihood/orders.py",
        "torch.where(own, -torch.inf, log_p.unsqueeze(-2)).logsumexp(-1) - math.log(k - 1)",
        "log_p.unsqueeze(-2).expand(-1, k, -1).logsumexp(-1) - math.log(k)",
        f"{_ORDERS}test_draws_have_the_ends_as_their_means",
    ),
    Fault(
        "an upper end of the evidence without its minus one",
        "likelihood/orders.py",
        "torch.expm1(log_p - log_psi)",
        "torch.exp(log_p - log_psi)",
        f"{_ORDERS}test_of_exact_parts_both_ends_are_the_likelihood",
    ),
    Fault(
        "an interval that calls any ESS reliable",
        "likelihood/orders.py",
        "ess - 1.0 >= RELIABLE_SHARE * (num_orders - 1.0)",
        "ess - 1.0 >= RELIABLE_SHARE - 1.0",
        f"{_ORDERS}test_each_order_is_a_plan_of_its_own_and_is_paid_for",
    ),
    Fault(
        "an excess with the error of two sets of texts",
        "likelihood/estimates.py",
        "(own - ratio * other).square()",
        "(own - own.mean()).square()",
        f"{_CURVE}test_the_error_of_an_excess_is_paired",
    ),
    Fault(
        "values in the order of the batches",
        "evaluation/figures.py",
        "for _, _, row in parts]).argsort()",
        "for _, _, row in parts]).sort().values",
        f"{_CURVE}test_values_stand_in_the_order_of_the_texts_whatever_their_lengths",
    ),
    Fault(
        "passes of all orders told as those of one text",
        "likelihood/orders.py",
        "plan.passes.view(num_orders, -1).double().mean(0)",
        "plan.passes.view(num_orders, -1).double().sum(0)",
        "tests/likelihood/test_orders.py::test_each_order_is_a_plan_of_its_own_and_is_paid_for",
    ),
    Fault(
        "an error per token beside bits per character",
        "frontier/curve.py",
        "found.standard_error * share",
        "found.standard_error",
        "tests/frontier/test_curve.py::test_bits_are_per_character_and_so_is_their_error",
    ),
    Fault(
        "a cooled setting compared with one that is not",
        "frontier/curve.py",
        "same and other.proposal == sampler.proposal and",
        "same and",
        "tests/frontier/test_curve.py::test_settings_are_compared_with_one_of_their_own_proposal",
    ),
    Fault(
        "bounds drawn as exact values",
        "frontier/curve_plot.py",
        '((True, colour), (False, "white"))',
        '((True, "white"), (False, colour))',
        "tests/frontier/test_curve.py::test_the_picture_shows_every_curve_by_its_colour_and_its_way",
    ),
    Fault(
        "a judge by counts whose law is more than one",
        "evaluation/ngrams.py",
        "(totals[before] + kinds[before])",
        "totals[before]",
        "tests/evaluation/test_ngrams.py::test_the_probabilities_of_all_texts_of_a_length_add_up_to_one",
    ),
    Fault(
        "what fills a block up scored at the end of a training",
        "frontier/closing.py",
        "Excerpt(text, 0, int(fill))",
        "Excerpt(text, 0)",
        "tests/frontier/test_closing.py::"
        "test_bits_are_those_of_the_exact_likelihood_per_character_without_what_fills_up",
    ),
    Fault(
        "a way that needs more bits called better",
        "frontier/closing_report.py",
        "'fewer' if less.mean > 0.0 else 'more'",
        "'more' if less.mean > 0.0 else 'fewer'",
        "tests/frontier/test_closing.py::test_the_words_follow_the_paired_difference",
    ),
    Fault(
        "a rule in blocks that chooses among all blocks",
        "samplers/blocks.py",
        "cast(Rule, self.within).choose(seen, masked & leftmost(masked, self.size))",
        "cast(Rule, self.within).choose(seen, masked)",
        "tests/samplers/test_blocks.py::test_a_plan_that_is_drawn_and_a_rule_chooses_what_it_draws",
    ),
]
