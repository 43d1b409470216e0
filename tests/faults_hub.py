"""Faults of models by folder and by name, and of their cards."""

from fault import Fault

_HUB, _TESTS = "weights/hub.py", "tests/weights/test_hub.py::"

FAULTS = [
    Fault(
        "a model that is saved as it is sampled",
        _HUB,
        "formats.fill_network(save_directory, self.network,",
        "formats.fill_network(save_directory, self._folded,",
        f"{_TESTS}test_what_is_loaded_is_saved_again_byte_for_byte",
    ),
    Fault(
        "a folder that is overwritten",
        _HUB,
        "or any(folder.iterdir())",
        "or False",
        f"{_TESTS}test_nothing_is_overwritten_and_the_folder_that_was_read_least_of_all",
    ),
    Fault(
        "pickles and code of a stranger downloaded",
        _HUB,
        "allow_patterns=DOWNLOADED",
        "allow_patterns=None",
        f"{_TESTS}test_what_is_pushed_is_loaded_by_its_name_and_later_from_the_cache",
    ),
    Fault(
        "weights of a large model that were trained, saved as they were before",
        _HUB,
        "parameter.requires_grad for parameter",
        "False for parameter",
        f"{_TESTS}test_a_large_folder_is_copied_file_by_file",
    ),
    Fault(
        "a learned energy that is folded though its denoiser is told the time",
        _HUB,
        "build(self._folded if of.told is None else self.network,",
        "build(folding.fold_conditioning(self.network),",
        f"{_TESTS}test_energies_correct_the_denoiser_of_another_model",
    ),
    Fault(
        "figures of other weights on a model's card",
        "weights/model_card.py",
        "if weights not in {each",
        "if None in {each",
        f"{_TESTS}test_the_card_has_the_figures_of_the_metric_card",
    ),
    Fault(
        "weights of an adapted model that nobody compares with their hash",
        "weights/large.py",
        "tensors.verify(folder, notes, *(file.name for file in shards.files(folder)))",
        "tensors.verify(folder, {}, *(file.name for file in shards.files(folder)))",
        f"{_TESTS}test_the_hash_of_an_adapted_model_is_compared",
    ),
]
