"""Faults of the likelihood of a part of a text given the rest."""

from fault import Fault

_FILE, _TESTS = "likelihood/conditional.py", "tests/likelihood/test_conditional.py::"

FAULTS = [
    Fault(
        "a conditional bound whose context is masked too",
        _FILE,
        "key * num_draws + number, rows[1])",
        "key * num_draws + number)",
        f"{_TESTS}test_its_mean_is_the_enumerated_bound_given_every_context",
    ),
    Fault(
        "a conditional bound per token, told as that of all tokens",
        _FILE,
        "values * wanted.sum()",
        "values",
        f"{_TESTS}test_its_mean_is_the_enumerated_bound_given_every_context",
    ),
    Fault(
        "a conditional bound whose draws are one",
        _FILE,
        "key * num_draws + number, rows",
        "key * num_draws + 0 * number, rows",
        f"{_TESTS}test_its_mean_is_the_enumerated_bound_given_every_context",
    ),
    Fault(
        "greedy decoding that sees what it has to write",
        _FILE,
        "masked, now = order[rows] >= number,",
        "masked, now = order[rows] == number,",
        f"{_TESTS}test_greedy_decoding_writes_one_continuation_of_every_context",
    ),
    Fault(
        "a greedy continuation of which one token is",
        _FILE,
        "(hit | ~scored).all(-1)",
        "hit.any(-1)",
        f"{_TESTS}test_an_autoregressive_model_is_scored_exactly_with_a_bos_and_without",
    ),
    Fault(
        "a conditional likelihood of an autoregressive model one position off",
        _FILE,
        "(x_0, 1) if bos_id is None",
        "(x_0, 0) if bos_id is None",
        f"{_TESTS}test_an_autoregressive_model_is_scored_exactly_with_a_bos_and_without",
    ),
]
