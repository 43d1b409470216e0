"""Faults of what data files, prompts and texts are read as."""

from fault import Fault

_FORMATS, _CONTINUATION = "tests/data/test_formats.py::", "tests/data/test_continuation.py::"

FAULTS = [
    Fault(
        "a small file unpacked to whatever it holds",
        "limits.py",
        "if unpacked > allowed(UNPACKED_BYTES):",
        "if False:",
        f"{_FORMATS}test_a_small_file_that_unpacks_to_much_is_refused_with_what_allows_it[a.zip]",
    ),
    Fault(
        "limits that nothing raises",
        "limits.py",
        "return limit * factor()",
        "return float(limit)",
        f"{_FORMATS}test_a_raised_limit_lets_it_pass",
    ),
    Fault(
        "a document of any size read",
        "data/documents.py",
        "limits.require(where, formats.DOCUMENT, size, limits.DOCUMENT_BYTES)",
        "pass",
        f"{_FORMATS}test_a_document_or_a_record_has_a_size",
    ),
    Fault(
        "a suffix known in small letters alone",
        "data/formats.py",
        'stem = _SHARD.sub("", name.lower())',
        'stem = _SHARD.sub("", name)',
        f"{_FORMATS}test_a_suffix_in_any_case_and_compression_is_what_it_is",
    ),
    Fault(
        "an unknown suffix taken for plain text",
        "data/formats.py",
        "found = _FORMATS.get(Path(stem).suffix)",
        'found = _FORMATS.get(Path(stem).suffix, "text")',
        f"{_FORMATS}test_an_unknown_suffix_is_refused_by_name_wherever_it_stands",
    ),
    Fault(
        "older files in the folder of a saved data set read beside it",
        "data/folders.py",
        'return _there(folder / _STATE, "_data_files", files, names)',
        "return names",
        "tests/data/test_folders.py::test_a_saved_set_is_the_files_that_its_state_names",
    ),
    Fault(
        "shards of two savings read together",
        "data/folders.py",
        "if _SHARD.fullmatch(first.name)[2] != shard[2]:",
        "if False:",
        "tests/data/test_folders.py::test_shards_of_two_savings_are_refused",
    ),
    Fault(
        "what goes on after a gap read as a text of its own",
        "data/vocabulary.py",
        "ids = self._going_on.encode_documents([text])[0]",
        "ids = self.encode_documents([text])[0]",
        f"{_CONTINUATION}test_given_pieces_come_out_around_a_gap_as_they_are",
    ),
    Fault(
        "a word right behind a gap that gets a space",
        "data/continuation.py",
        '== f"{first} {rest}":',
        '== "":',
        f"{_CONTINUATION}test_a_word_that_gets_a_space_cannot_stand_right_behind_a_gap",
    ),
    Fault(
        "a special token that a text spells read as one by one kind of judge",
        "data/tokenizer_files.py",
        "tokenizer.encode_special_tokens = True",
        "tokenizer.encode_special_tokens = False",
        "tests/evaluation/test_judges.py::test_a_torchtune_model_with_a_short_context_says_so_and_special_tokens_that_a_"
        "text_spells_are_text",
    ),
    Fault(
        "another cut into words taken for the same tokens",
        "data/tokenizer_files.py",
        'for name in ("normalizer", "pre_tokenizer")',
        'for name in ("normalizer",)',
        "tests/weights/test_autoregressive_folders.py::test_another_cut_into_words_is_another_tokenizer",
    ),
    Fault(
        "a text that was changed judged",
        "runs/records.py",
        "if files.fingerprint(_timeless(own)) != record.get(SUM):",
        "if False:",
        "tests/evaluation/test_samples.py::test_a_record_that_was_changed_is_named",
    ),
    Fault(
        "texts that are lost or doubled judged",
        "runs/records.py",
        'if own.get("row") != row:',
        "if False:",
        "tests/evaluation/test_samples.py::test_a_text_that_is_lost_doubled_or_moved_is_named",
    ),
]
