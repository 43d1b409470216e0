"""Faults of texts that are drawn in order: by the law of an AR model, and by a block of the denoiser's own."""

from fault import Fault

_PLAIN_LOOPS = "tests/samplers/test_ahead.py::test_it_writes_what_plain_loops_write"

_DECODERS = "tests/nn/test_decoder_order.py::"

FAULTS = [
    Fault(
        "a draft that the AR model refuses stays",
        "samplers/ahead.py",
        "proposed.index_copy(0, refused, again)",
        "proposed",
        "tests/samplers/test_ahead_law.py::test_texts_have_the_law_of_the_ar_model",
    ),
    Fault(
        "a draft kept without regard to how likely the denoiser found it",
        "samplers/ahead.py",
        "uniforms[:, 1].log() + log_p < log_q",
        "uniforms[:, 1].log() < log_q",
        "tests/samplers/test_ahead_law.py::test_texts_have_the_law_of_the_ar_model",
    ),
    Fault(
        "one token too many is final after a refusal",
        "samplers/ahead.py",
        "torch.minimum(stay + 1, width)",
        "torch.minimum(stay + 2, width)",
        _PLAIN_LOOPS,
    ),
    Fault(
        "the AR model predicts a token from itself",
        "samplers/ahead.py",
        "texts.line[flat + (self.bos - 1)]",
        "texts.line[flat + self.bos]",
        _PLAIN_LOOPS,
    ),
    Fault(
        "a row takes over the cache of one that is finished",
        "samplers/ahead.py",
        "(kept[:, going_on] for kept in cache)",
        "(kept[:, : int(going_on.sum())] for kept in cache)",
        "tests/samplers/test_ahead.py::test_a_row_that_is_finished_early_leaves_the_others_their_own_past",
    ),
    Fault(
        "the token after the drafts is verified as one of them",
        "samplers/drafters.py",
        "& (at >= done.unsqueeze(-1)) & (at < until.unsqueeze(-1))",
        "& (at >= done.unsqueeze(-1)) & (at <= until.unsqueeze(-1))",
        _PLAIN_LOOPS,
    ),
    Fault(
        "the denoiser's passes are left out of the calls",
        "samplers/ahead.py",
        "calls + texts.drafts + texts.rounds",
        "calls + texts.rounds",
        "tests/samplers/test_ahead_costs.py::test_what_is_told_is_what_networks_have_read",
    ),
    Fault(
        "a decoder's new tokens at the place of the first of them",
        "nn/decoder_steps.py",
        "where = start.unsqueeze(-1) + torch.arange(x.shape[1], device=x.device)",
        "where = start.unsqueeze(-1) + torch.zeros_like(torch.arange(x.shape[1], device=x.device))",
        "tests/nn/test_follow.py::test_what_follows_is_the_pass_over_the_whole_text",
    ),
    Fault(
        "what stands at its own place and later is read from the cache",
        "nn/attention.py",
        "torch.arange(length, device=like.device) < start.unsqueeze(-1)",
        "torch.arange(length, device=like.device) <= start.unsqueeze(-1)",
        "tests/nn/test_follow.py::test_what_follows_is_the_pass_over_the_whole_text",
    ),
    Fault(
        "an AR model's law given masks",
        "models/energies.py",
        "log_ratio = torch.where(unknown, -torch.inf, log_ratio)",
        "log_ratio = torch.where(candidates == self.mask_id, -torch.inf, log_ratio)",
        "tests/likelihood/test_ahead_bounds.py::test_its_energy_is_that_of_drafts_carried_over_and_of_what_begins_at_the_first_mask",
    ),
    Fault(
        "a bound of the AR law where masks stand to the left",
        "likelihood/bounds.py",
        "return bool((order.diff(dim=1) >= 0).all())",
        "return bool((order >= 0).all())",
        "tests/likelihood/test_ahead_bounds.py::test_where_masks_stand_to_the_left_it_has_no_bound",
    ),
    Fault(
        "the likelihood of the limit completed by draws",
        "likelihood/bounds.py",
        'now if limit or parts.scope == "transition"',
        'now if parts.scope == "transition"',
        "tests/likelihood/test_ahead_bounds.py::test_its_bound_is_the_likelihood_of_the_ar_model",
    ),
    Fault(
        "the block in order starts from the state of the token before",
        "nn/shallow.py",
        "at = where[:, 1:].clamp",
        "at = where[:, :-1].clamp",
        "tests/nn/test_shallow.py::test_before_it_is_trained_every_new_token_has_the_law_it_had_alone",
    ),
    Fault(
        "a frozen denoiser is trained on",
        "nn/shallow.py",
        "shallow.requires_grad_(False)",
        "shallow.requires_grad_(True)",
        "tests/nn/test_shallow.py::test_a_frozen_denoiser_stays_as_it_is_and_its_law_in_order_gets_better",
    ),
    Fault(
        "drafts at the time of what is known in place of what is masked",
        "samplers/drafters.py",
        "self.denoiser.schedule.inverse(known)",
        "self.denoiser.schedule.inverse(1.0 - known)",
        "tests/samplers/test_ahead.py::test_drafts_are_made_at_the_time_of_the_masks_that_the_denoiser_sees",
    ),
    Fault(
        "a row of a shifted decoder that asks in the place of its token",
        "nn/decoders.py",
        "where[:, 1:] + front - (1 if self.shifted else 0)",
        "where[:, 1:] + front",
        f"{_DECODERS}test_of_one_layer_a_pass_over_the_new_tokens_is_as_good_as_a_pass_for_each",
    ),
    Fault(
        "a row of a decoder that reads its own place twice",
        "nn/decoder_order.py",
        "torch.cat([free, free & ~own], dim=1)",
        "torch.cat([free, free], dim=1)",
        f"{_DECODERS}test_of_one_layer_a_pass_over_the_new_tokens_is_as_good_as_a_pass_for_each",
    ),
    Fault(
        "a new token of a decoder that reads the ones after it",
        "nn/decoder_order.py",
        "torch.ones(n, n, dtype=torch.bool, device=written.device).tril()",
        "torch.ones(n, n, dtype=torch.bool, device=written.device)",
        f"{_DECODERS}test_a_token_has_no_part_in_its_own_law_and_in_those_before",
    ),
    Fault(
        "a shifted decoder that is shown a mask before every new token",
        "nn/decoders.py",
        "if self.shifted and text is not None:",
        "if False and text is not None:",
        f"{_DECODERS}test_of_one_layer_a_pass_over_the_new_tokens_is_as_good_as_a_pass_for_each",
    ),
]
