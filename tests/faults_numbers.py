"""Faults of figures: what is counted, what is read of padding, and what is no number."""

from fault import Fault

_LOSS, _PADDING, _FINITE = "tests/test_loss_per_token.py", "tests/test_padding.py", "tests/test_finite.py"

FAULTS = [
    Fault(
        "the loss divided by padding too",
        "recipes/_training.py",
        "(num_tokens if self.per_token else num_rows)",
        "(num_rows * x_0.shape[1] if self.per_token else num_rows)",
        f"{_LOSS}::test_the_same_documents_in_longer_blocks_have_the_same_loss_and_gradient",
    ),
    Fault(
        "each part of a batch divided by its own tokens",
        "recipes/_training.py",
        "len(batch), self._num_tokens)",
        "len(batch), int(likelihoods.not_padding(batch[part], self.vocabulary.pad_id).sum()))",
        f"{_LOSS}::test_the_parts_of_a_batch_have_the_loss_and_gradient_of_the_whole",
    ),
    Fault(
        "padding counted in the NELBO of a joint network",
        "joint.py",
        "num_rows is None else num_tokens / num_rows",
        "num_rows is None else log_prob.shape[1]",
        f"{_LOSS}::test_the_joint_loss_is_the_nelbo_per_token_and_the_contrast_per_text",
    ),
    Fault(
        "padding counted in tokens per second",
        "recipes/_training.py",
        "tokens += self._num_tokens",
        'tokens += settings["batch_size"] * self.blocks.shape[1]',
        f"{_LOSS}::test_tokens_per_second_are_those_of_texts",
    ),
    Fault(
        "padding read by a network that is told to leave it out",
        "networks.py",
        'or self.arguments["causal"] else tokens != self.pad_id',
        'or self.arguments["causal"] else tokens == tokens',
        f"{_PADDING}::test_the_states_of_a_text_are_those_of_the_text_alone",
    ),
    Fault(
        "padding read by new tokens that are read in order",
        "attention.py",
        "torch.where(valid, m, 0)",
        "torch.where(valid, m, m)",
        f"{_PADDING}::test_energies_of_transitions_are_those_of_the_texts_alone",
    ),
    Fault(
        "padding read by the energy of a joint network",
        "networks.py",
        "self.energy_trunk(marked, mask=readable(valid), positions=at)",
        "self.energy_trunk(marked, positions=at)",
        f"{_PADDING}::test_energies_of_transitions_are_those_of_the_texts_alone",
    ),
    Fault(
        "a text goes on after its end",
        "vocabulary.py",
        "if self.end_id in ids and not show_specials:",
        "if False:",
        f"{_PADDING}::test_a_text_is_cut_where_it_ends",
    ),
    Fault(
        "padding that is to be learned left out of the loss",
        "recipes/_padding.py",
        "return own.ending_by_pad()",
        "return own",
        f"{_LOSS}::test_what_becomes_of_padding_is_chosen_and_kept",
    ),
    Fault(
        "what passes gave never looked at",
        "pipelines.py",
        "    finite.require(flags, plan.t, row)\n",
        "",
        f"{_FINITE}::test_an_energy_that_is_no_number_is_named_with_its_pass",
    ),
    Fault(
        "energies outside the window looked at",
        "finite.py",
        "energy.isnan().any(-1) & counts",
        "energy.isnan().any(-1)",
        f"{_FINITE}::test_energies_outside_the_window_do_not_count",
    ),
    Fault(
        "another text blamed for an energy",
        "finite.py",
        "of text {int(row[index])}",
        "of text {index}",
        f"{_FINITE}::test_the_first_pass_and_the_text_are_the_right_ones",
    ),
    Fault(
        "energies in rounds not handed on to be looked at",
        "adaptive.py",
        "                **{key: drawn[key] for key in _CHECKED},\n",
        "",
        f"{_FINITE}::test_an_energy_that_is_no_number_is_named_with_its_pass",
    ),
    Fault(
        "a law that fails in order taken for one",
        "speculative.py",
        "no_law = no_law | _per_row(wrong, row[taken], len(x_t))",
        "no_law = no_law | _per_row(wrong & False, row[taken], len(x_t))",
        f"{_FINITE}::test_a_law_that_fails_only_in_order_is_named",
    ),
    Fault(
        "logits divided by a temperature at which they overflow",
        "categorical.py",
        "if _COLD <= temperature <= _HOT and",
        "if temperature > 0.0 and",
        f"{_FINITE}::test_the_coldest_law_is_its_likeliest_token_and_the_hottest_an_even_one",
    ),
    Fault(
        "energies that are no numbers in a bound",
        "bounds.py",
        "    finite.require_energy(weighed)\n",
        "",
        f"{_FINITE}::test_figures_of_a_network_that_gives_no_numbers_are_refused",
    ),
    Fault(
        "weights that are no numbers saved over good ones",
        "recipes/_training.py",
        "if _processes.total([float(not self.weights.finite())], self.device)[0]:",
        "if False:",
        f"{_FINITE}::test_weights_that_are_no_numbers_are_not_saved",
    ),
]
