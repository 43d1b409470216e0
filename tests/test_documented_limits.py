"""The limits that the documents name are those of the table, and what lies on one of them is let by."""

from pathlib import Path

import pytest

from edlm import limits

DOCS = Path(__file__).parents[1] / "docs"
MIB = 1 << 20
DOCUMENTED = {  # the value, and the line of `checkpoints.md` that says so
    "PARAMETERS": (400_000_000, "| 400,000,000 (1.6 GB in float32) |"),
    "LAYERS": (1_000, "| its layers, its longest text | 1,000 and 131,072 |"),
    "TEXT_TOKENS": (16_777_216, "a validation, the texts of `oracle` | 16,777,216 |"),
    "SOURCE_SIZE": (4_096, "| symbols or hidden states of a random source | 4,096 |"),
    "LENGTH": (131_072, "| its layers, its longest text | 1,000 and 131,072 |"),
    "TENSORS": (20_000, "| tensors in one file | 20,000 |"),
    "HEADER_BYTES": (16 * MIB, "a large model's `tokenizer.json` | 16 MB, 8 MB, 64 MB |"),
    "JSON_BYTES": (8 * MIB, "a large model's `tokenizer.json` | 16 MB, 8 MB, 64 MB |"),
    "TOKENIZER_BYTES": (64 * MIB, "a large model's `tokenizer.json` | 16 MB, 8 MB, 64 MB |"),
    "PICKLE_BYTES": (6 * MIB, "| 6 MB, of 1,000,000 steps |"),
    "PICKLE_STEPS": (1_000_000, "| 6 MB, of 1,000,000 steps |"),
    "DOCUMENT_BYTES": (128 * MIB, "| 128 MiB, 32 MiB, 256 MiB |"),
    "RECORD_BYTES": (32 * MIB, "| 128 MiB, 32 MiB, 256 MiB |"),
    "CORPUS_BYTES": (256 * MIB, "| 128 MiB, 32 MiB, 256 MiB |"),
    "INFLATION": (100, "| 100 times its size, or 16 MiB |"),
    "UNPACKED_BYTES": (16 * MIB, "| 100 times its size, or 16 MiB |"),
    "GGUF_ENTRIES": (2_097_152, "| entries of one list of a GGUF file | 2,097,152 |"),
    **dict.fromkeys(
        ("IDS", "SIZE"),
        (
            16_777_216,
            "| ids of a vocabulary; any other size in a large model's `config.json`, such as a width | 16,777,216 |",
        ),
    ),
}
NUMBERS = [name for name, value in vars(limits).items() if name.isupper() and isinstance(value, int)]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_limit_is_the_documented_one(name: str) -> None:
    value, line = DOCUMENTED[name]
    assert getattr(limits, name) == value
    assert line in (DOCS / "howto" / "checkpoints.md").read_text("utf-8")


@pytest.mark.parametrize("factor", ["1", "10", "0.5"])
def test_what_lies_on_a_limit_is_let_by_and_the_next_is_not(factor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.FACTOR, factor)
    most = int(float(factor) * 1_000)
    limits.require("network", "layers", most, 1_000)
    with pytest.raises(limits.TooLarge, match=f"network: layers = {most + 1} must be at most {most}; EDLM_LIMITS="):
        limits.require("network", "layers", most + 1, 1_000)


@pytest.mark.parametrize(("found", "said"), [(1_001, 2), (2_000, 2), (2_001, 3)])
def test_the_number_that_is_said_to_allow_it_does(found: int, said: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(limits.TooLarge, match=rf"EDLM_LIMITS={said} "):
        limits.require("network", "layers", found, 1_000)
    monkeypatch.setenv(limits.FACTOR, str(said))
    limits.require("network", "layers", found, 1_000)


def test_a_small_file_may_unpack_to_what_any_file_may_and_a_large_one_to_so_many_times_its_size() -> None:
    stored = limits.UNPACKED_BYTES
    limits.require_inflation("a.gz", limits.UNPACKED_BYTES, 1)
    limits.require_inflation("a.gz", stored * limits.INFLATION, stored)
    for unpacked, size in ((limits.UNPACKED_BYTES + 1, 1), (limits.UNPACKED_BYTES + 1, 0), (101 * stored, stored)):
        with pytest.raises(limits.TooLarge, match="times their size"):
            limits.require_inflation("a.gz", unpacked, size)


def test_a_file_on_its_limit_is_read_one_beyond_is_not_and_a_missing_one_is_let_by(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    limits.require_small(file, 3)
    file.write_bytes(b"abc")
    limits.require_small(file, 3)
    with pytest.raises(limits.TooLarge, match="bytes = 3 must be at most 2"):
        limits.require_small(file, 2)
    with pytest.raises(ValueError, match="no regular file"):
        limits.require_small(tmp_path, 3)
