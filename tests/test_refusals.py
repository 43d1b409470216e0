"""Refusals that stand in no other file of tests: each is one line that names the file, the key or the network."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import smallest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn

from edlm import limits
from edlm.data import columns, documents, folders, pieces, tokenizer_files, tokenizer_kinds, vocabulary
from edlm.evaluation import card, generation
from edlm.frontier import curve, grid
from edlm.likelihood import conditional, hidden_markov, nelbo
from edlm.models import denoisers
from edlm.nn import decoder_steps
from edlm.nn.networks import Transformer
from edlm.recipes import pretrain_ar
from edlm.samplers import configs, execution, plans, selections
from edlm.samplers.sampler import Sampler
from edlm.training.muon import Muon
from edlm.weights import (
    checkpoints,
    config_keys,
    exchange,
    foreign,
    hub,
    inert,
    loading,
    own,
    permitted,
    tensors,
)

CPU, ONE = torch.device("cpu"), torch.ones(1)
LETTERS, TEXTS = vocabulary.characters(), torch.zeros(1, 4, dtype=torch.int64)
DENOISER = hidden_markov.denoiser(hidden_markov.markov(torch.eye(3)), 4)
PARTS = "dataset_dict.json"
HEADED = nn.Linear(2, 2)
HEADED.head = nn.Linear(2, 2)
SCHEDULE = {"_component_": "edlm.schedules.log_linear"}


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def packed(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return path


def pickled(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def network(folder: Path) -> Path:
    small = Transformer(LETTERS.size, 4, hidden_size=4, num_layers=1, num_heads=1)
    checkpoints.save_network(folder, small, LETTERS, {})
    return folder


def without(folder: Path, key: str) -> Path:
    """A network's folder whose description lacks a key."""
    network(folder)
    description = json.loads((folder / "network.json").read_text("utf-8"))
    del description[key]
    (folder / "network.json").write_text(json.dumps(description), "utf-8")
    return folder


def raised(message: str) -> None:
    raise ValueError(message)


def beginning() -> Tokenizer:
    """Three words, and a token that stands before them."""
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1, "c": 2, "[B]": 3}, unk_token="a"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[B] $0", special_tokens=[("[B]", 3)])
    return tokenizer


REFUSALS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "json that is none": (lambda at: folders._read(written(at / "state.json", "{")), r"state\.json: not JSON \("),
    "json of a list": (
        lambda at: folders._read(written(at / "state.json", "[]")),
        r"state\.json: must be a JSON object",
    ),
    "csv that is none": (
        lambda at: list(documents.read(written(at / "a.csv", 'text\n"a"b\n'))),
        r"a\.csv.*: not CSV \(",
    ),
    "a number for a text": (
        lambda at: list(documents.read(written(at / "a.jsonl", '{"text": 3}\n'))),
        r"a\.jsonl.*: 3 must be a text",
    ),
    "a list of more than texts": (
        lambda at: list(documents.read(written(at / "a.jsonl", '{"text": ["a", 3]}\n'))),
        r"a\.jsonl.*: \['a', 3\] must be a text",
    ),
    "a file of torch.save without what it saves": (lambda at: inert.read(packed(at / "a.ckpt", "a/other")), r"a\.ckpt"),
    "a file of torch.save with two": (
        lambda at: inert.read(packed(at / "a.ckpt", "a/data.pkl", "b/data.pkl")),
        r"a\.ckpt.*no data\.pkl, or more than one",
    ),
    "a published folder without weights": (
        lambda at: foreign.read(written(at / "mdlm" / "config.json", '{"model_type": "mdlm"}').parent),
        r"mdlm: neither model\.safetensors nor pytorch_model\.bin is there",
    ),
    "a network without its arguments": (
        lambda at: checkpoints.read_description(without(at / "network", "arguments")),
        r"network\.json: lacks arguments",
    ),
    "ids of three axes": (lambda _: LETTERS.decode(torch.zeros(1, 1, 1, dtype=torch.int64)), r"got \(1, 1, 1\)"),
    "a vocabulary that lacks bytes": (
        lambda at: tokenizer_files.require_bytes(written(at / "vocab.json", '{"a": 0}')),
        "^255 byte symbols are missing$",
    ),
    "merges that are none": (
        lambda at: tokenizer_files.read_bpe(written(at / "vocab.json", '{"a": 0}'), written(at / "merges.txt", " \n")),
        "^the file is empty$",
    ),
    "a text that no word spells": (
        lambda _: tokenizer_kinds.encode(Tokenizer(WordLevel({"a": 0}, unk_token="?")), ["b"], None),
        r"^a text holds what the tokenizer cannot spell \(",
    ),
    "one set of texts twice": (
        lambda at: card.documents(
            {"split": None, "zero_shot": [str(written(at / "a.txt", "a"))] * 2, "zero_shot_files": None}
            | {"normalised": False}
        ),
        r"^zero_shot names '.*a\.txt' twice$",
    ),
    "tokens per pass beside steps": (
        lambda _: configs.of_short_keys({"num_steps": 4, "tokens_per_pass": 2}),
        "^tokens_per_pass = 2 needs num_steps = null, not 4$",
    ),
    "a label of no rule": (
        lambda _: curve.require_rules({"by luck": "luck"}, [Sampler(DENOISER, plans.TokensPerPass(1))]),
        "^labels.by luck: no such rule; the sweeps have tokens per pass$",
    ),
    "scored positions that are no truths": (
        lambda _: nelbo.check_texts(DENOISER, TEXTS, torch.ones(1, 4)),
        r"^scored must be bool \(1, 4\), as x_0 is, or None, not ",
    ),
    "scored positions of other texts": (
        lambda _: nelbo.check_texts(DENOISER, TEXTS, torch.ones(2, 4).bool()),
        r"^scored must be bool \(1, 4\), as x_0 is, or None, not ",
    ),
    "keys of other texts": (
        lambda _: nelbo.check_texts(DENOISER, TEXTS, None, torch.arange(3)),
        r"^row must be a key of each of the 1 texts, not int64 \(3,\)$",
    ),
    "texts that are no ids": (
        lambda _: nelbo.check_texts(DENOISER, TEXTS.double(), None),
        r"^x_0 must be token ids, int64 \(b, l\), not float64 \(1, 4\)$",
    ),
    "texts that are no tensor": (
        lambda _: nelbo.check_texts(DENOISER, "abc", None),
        r"^x_0 must be token ids, int64 \(b, l\), not str$",
    ),
    "an attention that is read all at once": (
        lambda _: decoder_steps.empty_cache([SimpleNamespace(attn=nn.Linear(1, 1))], 1, 2, torch.zeros(1)),
        "^a Linear is not read one position at a time: only a MultiHeadAttention is$",
    ),
    "a weight for a list of them": (
        lambda _: Muon(torch.ones(2, 2, requires_grad=True)),
        "^params must be weights or groups of them, not one Tensor$",
    ),
    "another vocabulary than a network's": (
        lambda at: checkpoints.load_network(network(at / "n"), vocabulary.characters("ab")),
        "n was trained on vocabulary .*, not ",
    ),
    "two places that stretch positions in two ways": (
        lambda at: config_keys.rope(
            at,
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"type": "linear", "factor": 4.0}},
        ),
        r"config\.json: rope_scaling = .*2\.0.* and rope_parameters = .*4\.0.* differ$",
    ),
    "a pickle of no trainer": (
        lambda at: foreign.read(pickled(at / "a.ckpt", {"weights": {}})),
        r"a\.ckpt: no checkpoint of a Lightning trainer, which has a state_dict$",
    ),
    "a part that is neither energy nor denoiser": (
        lambda at: foreign.read(pickled(at / "a.ckpt", {"state_dict": {"backbone.a": ONE, "ebm.a": ONE, "b": ONE}})),
        r"a\.ckpt: .* belongs neither to an energy nor to its denoiser$",
    ),
    "a baseline in a folder of another network": (
        lambda at: loading.baseline(str(network(at / "n")), CPU),
        "^denoiser = '.*n' holds no baseline$",
    ),
    "a component that is no module": (
        lambda _: own.adopt(ONE, {"_component_": "a.B"}, {"vocab_size": 3, "max_length": 4}),  # type: ignore[arg-type]
        "^network: a.B: makes a Tensor, which is no module$",
    ),
    "a name that cannot be called": (
        lambda _: own.find("math.pi", "network.json", ["math.pi"]),
        "^network.json: class 'math.pi' cannot be called$",
    ),
    "a schedule that says nothing of conditioning": (
        lambda _: permitted.check_notes({"schedule": SCHEDULE}, "network.json"),
        "^network.json: has a schedule, and lacks time_conditioning$",
    ),
    "tensors that share the bytes of a file": (
        lambda at: tensors.require_held({"a": torch.ones(1000)}, written(at / "a.ckpt", "a" * 100)),
        r"a\.ckpt: up to a, of shape \(1000,\), its tensors take 4000 bytes; it has 100$",
    ),
    "a header that is longer than its file": (
        lambda at: tensors.shapes(written(at / "a.safetensors", "\x7f" + "\0" * 9)),
        r"a\.safetensors: not a whole safetensors file \(its header is cut off\)$",
    ),
    "a network without blocks": (
        lambda _: execution.compile_blocks(nn.Linear(2, 2)),
        "^Linear has no blocks to compile$",
    ),
    "a selection that is not there": (
        lambda _: selections.of("sirr"),
        r"^selection = 'sirr' must be one of sir, imh, greedy, speculative$",
    ),
    "a bound of entropy that is a word": (lambda _: plans.EntropyBound("a"), "^gamma = 'a' must be a number$"),
    "ids that are no whole numbers": (
        lambda _: LETTERS.decode(torch.ones(1, 2)),
        r"^ids must be a tensor of token ids, as edlm\.sample\(\.\.\.\)\[\"tokens\"\] is, not of torch\.float32$",
    ),
    "a denoiser of a network with a head and no length": (
        lambda _: denoisers.subs(HEADED, 3),
        "^network must be one with a vocabulary head, as networks.Transformer is, not of class Linear$",
    ),
    "ends of a text without the one or the other": (
        lambda _: pieces.wrap(pieces.Excerpt(TEXTS[0], given=0), vocabulary.characters("ab ", specials=["bos"])),
        "^wrapped = True needs a vocabulary with a bos and an eos id$",
    ),
    "a sweep of a model that the config does not name": (
        lambda _: grid.require_sources([{"ar": {}}], {"ar": None}),
        r"^ar is null, and sweeps\[0\] draws with 'ar': name a folder$",
    ),
    "a saved data set without one of its parts": (
        lambda at: folders._named(
            written(at / "dataset_dict.json", '{"splits": ["train"]}').parent, ["dataset_dict.json"]
        ),
        r"dataset_dict\.json: splits must name what lies beside it, and 'train' is not there$",
    ),
    "more tensors than are read": (
        lambda at: tensors.require_held({str(n): ONE for n in range(60)}, written(at / "a.ckpt", "")),
        r"a\.ckpt: tensors = 60 must be at most 50; ",
    ),
    "a word that a tokenizer with a beginning cannot spell": (
        lambda _: raised(tokenizer_kinds._unknown_message(beginning(), "a b c", 1)),
        "^'b' at offset 2 cannot be spelled by the tokenizer$",
    ),
    "a long reason of the hub": (lambda _: hub._downloaded("no/model"), r"^'no/model' is no folder, .* \(x{200}\)$"),
    "a second text without a scored position": (
        lambda _: conditional.bound(
            DENOISER,
            TEXTS.expand(2, -1),
            torch.tensor([[True] * 4, [False] * 4]),
            ONE.long()[0],
            torch.arange(2),
            num_draws=2,
        ),
        "^row 1 has no scored position$",
    ),
}


FOOTERS = {
    "nested too deeply": (1, b"\0", 0),
    "a number without end": (4, b"\xff" * 10, 1),
    "cut off": (8, b"\x03ab", 1),
    "kind 11": (11, b"\0", 1),
}


@pytest.mark.parametrize("said", FOOTERS)
def test_what_a_footer_cannot_hold_is_named(said: str) -> None:
    kind, content, depth = FOOTERS[said]
    with pytest.raises(LookupError, match=f"^{said}$"):
        columns._value(io.BytesIO(content), kind, depth)


def test_a_network_of_ones_own_has_no_published_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = network(tmp_path / "n")
    monkeypatch.setattr(checkpoints, "load_network", lambda _: nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"n: a Linear has no published names$"):
        exchange.export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", REFUSALS)
def test_it_is_refused_in_one_line_that_says_what_it_is(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, said = REFUSALS[what]
    monkeypatch.setattr(limits, "TENSORS", 50)
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: raised("x" * 300))
    with pytest.raises(ValueError, match=said) as error:
        call(tmp_path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(("module", "loader"), [(card, "named"), (generation, "resolve")])
def test_an_energy_of_ones_own_corrects_no_baseline(module: Any, loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(denoiser=None, diffusion=None)
    monkeypatch.setattr(getattr(module, loader), "load", lambda *_: found)
    settings = {
        **smallest.settings_of("generate"),
        "denoiser": "runs/sedd",
        "energy": {"_component_": "edlm.energies.zero"},
    }
    said = r"^energy = \{.*zero.\} corrects a masked diffusion denoiser, and .runs/sedd. is none$"
    with pytest.raises(ValueError, match=said):
        module.load(settings, CPU)


def test_an_error_of_held_out_text_needs_two_blocks(tmp_path: Path) -> None:
    text = written(tmp_path / "a.txt", "\n\n".join(["abcdefgh " * 40] * 3))
    words = [f"corpus={{_component_: edlm.corpora.text_files, path: {text}}}", "length=300"]
    settings = smallest.settings_of("pretrain_ar", *smallest.ar_words(tmp_path / "ar"), *words)
    said = "length = 300: valid has one block so long, and an error needs two"
    with pytest.raises(ValueError, match=said):
        pretrain_ar.main(settings)
