"""Faults of continuations that are asked of a model, as test suites ask them."""

from fault import Fault

_FILE, _TESTS = "evaluation/continuations.py", "tests/evaluation/test_continuations.py::"

FAULTS = [
    Fault(
        "a continuation scored with its context",
        _FILE,
        "return first, whole[len(first) :]",
        "return first, whole",
        f"{_TESTS}test_a_pair_is_cut_where_the_ids_of_the_context_end",
    ),
    Fault(
        "a context cut on its right",
        _FILE,
        "context[max(0, len(context) + len(continuation) - reading.max_length) :]",
        "context[: reading.max_length - len(continuation)]",
        f"{_TESTS}test_a_context_that_is_too_long_is_cut_on_its_left",
    ),
    Fault(
        "all requests with the same draws",
        _FILE,
        "zlib.crc32(tokens.numpy().tobytes()) >> 1 << 32",
        "0 << 32",
        f"{_TESTS}test_answers_depend_on_no_other_request_and_choices_share_their_draws",
    ),
    Fault(
        "a bound told as an exact likelihood",
        _FILE,
        "return self.sampler is None or not exact.missing(self.sampler)",
        'return self.sampler is None or exact.missing(self.sampler) != ""',
        f"{_TESTS}test_a_plan_that_is_a_rule_is_exact_and_sums_to_one",
    ),
    Fault(
        "a text up to its last stop",
        _FILE,
        "min(stopped, default=len(text))",
        "max(stopped, default=len(text))",
        f"{_TESTS}test_texts_are_written_in_blocks_up_to_a_stop",
    ),
    Fault(
        "a text that goes on after its end",
        _FILE,
        "block[: ended[0]] if len(ended) else block",
        "block",
        f"{_TESTS}test_an_end_of_text_ends_it",
    ),
    Fault(
        "a temperature of zero read as one",
        _FILE,
        "wanted.temperature or COLDEST",
        "wanted.temperature or 1.0",
        f"{_TESTS}test_without_a_temperature_the_most_likely_text_is_written",
    ),
    Fault(
        "a request asked again with the same noise",
        _FILE,
        "repetition * _REPEATS + number)",
        "0 * _REPEATS + number)",
        f"{_TESTS}test_texts_are_written_in_blocks_up_to_a_stop",
    ),
]
