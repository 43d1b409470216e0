"""Damage to files, drawn at random: bytes, JSON values, lines, values of a command line."""

import io
import json
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

CANARY = "executed"  # a file that appears where something of a file was executed
TEXT = (".json", ".jsonl", ".txt", ".csv", ".tsv")
BINARY_WITHOUT_SUMS = (".parquet", ".arrow")
HUGE = (10**7, 2**31, 2**63, 10**30, 1e308, -1, 0, -(2**63), 1.5, float("nan"), float("inf"))
ODD = (None, True, False, "", "x", "\ud800", "\x00", "é" * 9, [], [1, 2], {}, {"a": 1}, [[[[]]]], *HUGE)


class Call:
    """An object whose pickle asks for a call when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {CANARY}",)


def bytes_of(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """One damage to bytes, in words, and what comes of it."""
    size = max(1, len(content))
    at, other = rng.randrange(size), rng.randrange(size)
    low, high = sorted((at, other))
    random_bytes = rng.randbytes(rng.choice((1, 8, 64)))
    bit = bytes([content[at] ^ (1 << rng.randrange(8))]) if content else b"x"
    damages = {
        f"cut at {at}": content[:at],
        "emptied": b"",
        f"bit flipped in byte {at}": content[:at] + bit + content[at + 1 :],
        f"zeros from {low} to {high}": content[:low] + bytes(high - low) + content[high:],
        f"{len(random_bytes)} random bytes at {at}": content[:at] + random_bytes + content[at + len(random_bytes) :],
        f"bytes {low} to {high} left out": content[:low] + content[high:],
        f"bytes {low} to {high} twice": content[:high] + content[low:],
        "random bytes behind": content + random_bytes,
        "another's bytes": rng.randbytes(size),
    }
    return rng.choice(list(damages.items()))


def hostile(rng: random.Random) -> tuple[str, bytes]:
    """A file of another kind than expected, or one that asks for a call or for very much."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickle.dumps(Call()))
        file.writestr("archive/version", "3")
    zeros = io.BytesIO()
    with (
        zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("archive/data.pkl", "w", force_zip64=True) as inner,
    ):
        for _ in range(256):
            inner.write(bytes(1 << 20))
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    kinds = {
        "a pickle that asks for a call": pickle.dumps(Call()),
        "an archive whose pickle asks for a call": archive.getvalue(),
        "an archive that unpacks to 256 MB": zeros.getvalue(),
        "safetensors of 4 TB": len(header).to_bytes(8, "little") + header,
        "a header of 2^63 bytes": (2**63).to_bytes(8, "little") + b"{}",
        "deeply nested JSON": b"[" * 100_000,
        "a long number": b'{"step": ' + b"9" * 5000 + b"}",
        "UTF-16": '{"step": 1}\n'.encode("utf-16"),
        "one long line": b"a" * (1 << 20),
        "NUL bytes": bytes(4096),
        "a byte order mark": b"\xef\xbb\xbf",
        "half a surrogate pair": b'{"text": "\\ud800"}\n',
        "line breaks": b"\n" * (1 << 16),
    }
    return rng.choice(list(kinds.items()))


def json_of(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """One value of a JSON text dropped or replaced, at any depth."""
    tree = json.loads(content)
    places = list(_places(tree, ()))
    if not places:
        return bytes_of(rng, content)
    place = rng.choice(places)
    parent = tree
    for key in place[:-1]:
        parent = parent[key]
    name = ".".join(map(str, place))
    if rng.random() < 0.3:
        del parent[place[-1]]
        return f"{name} left out", json.dumps(tree).encode()
    if isinstance(parent[place[-1]], dict) and "_component_" in parent[place[-1]] and rng.random() < 0.8:
        parent[place[-1]] = {"_component_": "os.system", "command": f"touch {CANARY}"}
        return f"{name} a call", json.dumps(tree).encode()
    value = rng.choice([value for value in ODD if value != parent[place[-1]]])
    parent[place[-1]] = value
    return f"{name} replaced by {value!r}", json.dumps(tree).encode()


def lines_of(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """Lines lost, doubled, exchanged, or one of them damaged."""
    lines = content.splitlines(keepends=True)
    if not lines:
        return bytes_of(rng, content)
    at = rng.randrange(len(lines))
    kind = rng.choice(("lost", "doubled", "exchanged", "damaged", "value", "value", "blank"))
    if kind == "lost":
        return f"line {at} lost", b"".join(lines[:at] + lines[at + 1 :])
    if kind == "doubled":
        return f"line {at} doubled", b"".join(lines[: at + 1] + lines[at:])
    if kind == "exchanged":
        return f"line {at} put last", b"".join(lines[:at] + lines[at + 1 :] + [lines[at]])
    if kind == "blank":
        return f"a blank line at {at}", b"".join([*lines[:at], b"\n", *lines[at:]])
    try:
        what, line = json_of(rng, lines[at]) if kind == "value" else bytes_of(rng, lines[at])
    except (ValueError, RecursionError):
        what, line = bytes_of(rng, lines[at])
    return f"line {at}: {what}", b"".join([*lines[:at], line.rstrip(b"\n") + b"\n", *lines[at + 1 :]])


def file(rng: random.Random, path: Path) -> str:
    """Damage a file in place, and say how."""
    content = path.read_bytes()
    kinds = [bytes_of, bytes_of]
    if path.suffix == ".json":
        kinds = [json_of, json_of, json_of, bytes_of]
    if path.suffix == ".jsonl":
        kinds = [lines_of, lines_of, bytes_of]
    if rng.random() < 0.12:
        what, damaged = hostile(rng)
    elif rng.random() < 0.05:
        path.unlink()
        return "removed"
    else:
        what, damaged = rng.choice(kinds)(rng, content)
    path.write_bytes(damaged)
    return what


def detectable(path: Path, what: str, damaged: bytes) -> bool:
    """Whether a reader can know: a text with other letters in it, or cut between two lines, is a text."""
    plain = path.suffix in (".txt", ".csv", ".tsv")
    foreign = path.parts[0] in ("published", "hub") and path.suffix == ".safetensors"  # no sums stand beside them
    if plain or foreign or path.suffix in BINARY_WITHOUT_SUMS:
        return False
    if path.suffix not in TEXT:
        return True
    if path.parts[0] == "published" and what in ("dropout left out", "model_length left out"):  # defaults, and told
        return False
    if path.parts[0] == "texts":  # documents, of which any number in any order is a corpus
        return not _is_corpus(damaged)
    return not ("byte" in what and _is_json(path, damaged))


def _is_corpus(content: bytes) -> bool:
    try:
        texts = [json.loads(line)["text"] for line in content.split(b"\n") if line.strip()]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    texts = [text for text in texts if text is not None]  # no text
    return all(isinstance(part, str) for text in texts for part in (text if isinstance(text, list) else [text]))


def _is_json(path: Path, content: bytes) -> bool:
    try:
        for part in [content] if path.suffix == ".json" else filter(None, content.split(b"\n")):
            json.loads(part)
    except (ValueError, RecursionError):
        return False
    return True


def _places(tree: Any, place: tuple[Any, ...]) -> Any:
    """The path of every value in a tree, its keys and indices."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inside:
        yield (*place, key)
        yield from _places(value, (*place, key))


# ---- Command lines

VALUES = [
    *(
        "",
        "''",
        "null",
        "~",
        "true",
        "[]",
        "[1,2]",
        "{}",
        "{a: 1}",
        "x",
        "é",
        "\U0001d518",
        "\t",
        " ",
        "-1",
        "0",
        "1",
        "2",
        "1.5",
    ),
    *("1e7", "10000000", "1e308", "1e-308", "-1e308", ".nan", ".inf", "-.inf", "2147483648", "9223372036854775807"),
    *("9223372036854775808", "1e400", "0x10", "0o17", "010", "1_000", "12:30:45", "2020-01-01", "2020-01-01 10:00:00"),
    *("!!timestamp 2020-01-01", "!!timestamp 2020", "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]"),
    *("!!python/object/apply:os.system ['touch executed']", "!!python/name:os.system", "!!int x", "!!float x"),
    *(
        "!!null x",
        "!!bool x",
        "!!str 1",
        "!!map [1]",
        "!!seq {a: 1}",
        "!unknown x",
        "&a [*a]",
        "*a",
        "&a 1",
        "[&a 1, *a]",
    ),
    *(
        "{<<: {a: 1}}",
        "{? [1, 2] : 3}",
        "{1: 2}",
        "{null: 1}",
        "[[[[1]]]]",
        "[null]",
        "['']",
        "{",
        "[",
        "'",
        '"',
        "%",
        "@x",
    ),
    *("`x", "|", ">", "- 1", "a: b: c", "#", "x#y", "${seed}", "${x", "${nothing}", "${oc.env:HOME}", "${oc.decode:x}"),
    *(
        "???",
        "yes",
        "no",
        "on",
        "off",
        "NULL",
        "TRUE",
        "1,2",
        "a b",
        "../x",
        "\u202e",
        "\ufeff",
        "x" * 5000,
        "9" * 5000,
    ),
    *("[" * 3000, "auto", "cpu", "edlm", "3", "4", "7", "8", "16", "0.5", "1.0", "[0.0,0.5]", "[1.0,0.0]", "[.nan,1]"),
]
COMPONENTS = [
    *("edlm.schedules.cosine", "edlm.schedules.polynomial", "edlm.networks.Transformer", "edlm.networks.EnergyNetwork"),
    *(
        "edlm.vocabulary.characters",
        "edlm.vocabulary.from_tokenizer_json",
        "edlm.corpora.text_files",
        "torch.optim.SGD",
    ),
    *(
        "edlm.corpora.embedded",
        "edlm.datasets.named",
        "edlm.datasets.files",
        "torch.optim.LBFGS",
        "torch.optim.Adagrad",
    ),
    *(
        "torch.optim.Optimizer",
        "torch.nn.Linear",
        "builtins.dict",
        "builtins.len",
        "math.pi",
        "edlm",
        "",
        ".",
        "x.",
        "..x",
    ),
    *(
        "edlm.schedules.log_linear",
        "edlm.likelihood.hidden_markov.random_hidden_markov",
        "json.loads",
        "typing.Any",
        "builtins.object",
    ),
    *(
        "torch.optim.AdamW",
        "edlm.schedules",
        "edlm..x",
        "é.é",
        "os.path",
        "torch.Tensor",
        "builtins.int",
        "builtins.type",
    ),
]
