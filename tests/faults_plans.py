"""Faults of plans that choose what a pass reveals, and of the loop that they have."""

from fault import Fault

_RULES = "tests/samplers/test_choices.py::"
_LOOP = "tests/samplers/test_looping.py::"
_LAW = "tests/likelihood/test_law_of_rules.py::"
FAULTS = [
    Fault(
        "an entropy bound that counts the largest entropy too",
        "samplers/choices.py",
        "largest[..., 0] = 0.0",
        "largest[..., 0] = torch.inf",
        _RULES + "test_each_rule_is_its_definition",
    ),
    Fault(
        "an entropy bound that reveals nothing where the law is no number",
        "samplers/choices.py",
        "within | (place == 0)",
        "within",
        _RULES + "test_a_position_is_chosen_where_nothing_is_a_number",
    ),
    Fault(
        "an entropy bound over the entropies of neighbours in place of the lowest ones",
        "samplers/choices.py",
        "torch.where(masked, seen.entropy, torch.inf).gather(-1, order)",
        "torch.where(masked, seen.entropy, torch.inf)",
        _LAW + "test_what_an_entropy_bound_takes_shares_no_more_information_than_its_budget",
    ),
    Fault(
        "nothing revealed where nothing is above the threshold",
        "samplers/choices.py",
        'first(ordered(seen, masked, "confidence"), 1) & masked | (seen.confidence',
        "(seen.confidence",
        _RULES + "test_each_rule_is_its_definition",
    ),
    Fault(
        "the least sure positions first",
        "samplers/choices.py",
        "-getattr(seen, by)",
        "getattr(seen, by)",
        _RULES + "test_each_rule_is_its_definition",
    ),
    Fault(
        "ties that rounding decides",
        "samplers/choices.py",
        "(value * _TIES).round()",
        "(value * _TIES)",
        _RULES + "test_equals_are_taken_from_the_left_whatever_rounding_made_of_them",
    ),
    Fault(
        "a margin between weights that are no probabilities",
        "process/categorical.py",
        "(1.0 - second) / total)",
        "1.0 - second)",
        _RULES + "test_how_sure_a_law_is_is_what_its_probabilities_say",
    ),
    Fault(
        "left to right at times of the masks alone",
        "process/absorbing.py",
        "- number).double() / masked.shape[1]",
        "- number).double() / masked.sum(-1, keepdim=True)",
        _RULES + "test_left_to_right_is_drawn_without_any_number",
    ),
    Fault(
        "the noise of the first pass in every pass that is chosen",
        "samplers/looping.py",
        "torch.full((), number, device",
        "torch.full((), first_pass, device",
        _LOOP + "test_it_writes_what_a_slow_loop_writes",
    ),
    Fault(
        "every row at work to the end where a plan reads the pass",
        "samplers/looping.py",
        "count = min(len(rows.places), padding.rows(int(running.sum())))",
        "count = len(rows.places)",
        _LOOP + "test_a_row_without_masks_is_worked_on_no_more_and_noise_is_drawn_for_what_is_revealed",
    ),
    Fault(
        "the time of a pass that is chosen by the masks of the longest row",
        "samplers/looping.py",
        "left.double() / length",
        "left.double() / left.max()",
        _LOOP + "test_the_time_is_when_the_schedule_expects_the_masks_that_are_left",
    ),
    Fault(
        "a window that is not looked at where a plan reads the pass",
        "samplers/looping.py",
        "schedules.inside(t, window) & (left > 0)",
        "(left > 0)",
        _LOOP + "test_the_time_is_when_the_schedule_expects_the_masks_that_are_left",
    ),
    Fault(
        "the law of a rule of whatever set shares a position with its choice",
        "likelihood/chances.py",
        "[before] == new).all(-1)",
        "[before] == new).any(-1)",
        _LAW + "test_it_is_the_law_of_the_slow_enumeration",
    ),
    Fault(
        "a choice by the law before it is cooled",
        "samplers/sampler.py",
        "stages.Law(sampler.denoiser, *sampler.proposal)",
        "stages.Law(sampler.denoiser, 1.0, 1.0)",
        _LOOP + "test_a_rule_sees_the_law_that_tokens_are_drawn_from",
    ),
    Fault(
        "a plan that may overwrite what is given",
        "samplers/stages.py",
        "return chosen & masked",
        "return chosen",
        _LOOP + "test_a_plan_that_breaks_a_law_ends_no_loop_and_changes_no_prompt",
    ),
    Fault(
        "drafts that are weighed filled in only where the plan reveals them",
        "samplers/looping.py",
        'drafted = corrected & (active.proposes == "masked")',
        "drafted = torch.zeros_like(corrected)",
        _LOOP + "test_an_energy_of_drafts_is_shown_whole_drafts",
    ),
    Fault(
        "finished rows kept at work in place of those that run",
        "samplers/looping.py",
        "argsort(descending=True",
        "argsort(descending=False",
        _LOOP + "test_a_text_does_not_depend_on_its_batch",
    ),
    Fault(
        "finished rows corrected on, in a window that reaches down to time 0",
        "samplers/looping.py",
        "schedules.inside(t, window) & (left > 0)",
        "schedules.inside(t, window)",
        "tests/samplers/test_looping.py::test_a_row_without_masks_is_corrected_no_more",
    ),
    Fault(
        "a last pass that is expected to reveal more than is left",
        "samplers/planning.py",
        "size = left.clamp(max=count)",
        "size = torch.full_like(left, count)",
        "tests/samplers/test_choices.py::test_a_last_pass_reveals_what_is_left_and_a_window_may_have_none",
    ),
]
