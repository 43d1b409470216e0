"""What of a config reaches the loader of each network: paths, lengths, precisions, ids, and in which place."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edlm.models import energies
from edlm.nn import adapters, decoders
from edlm.samplers import corrections
from edlm.weights import (
    adaptation,
    checkpoints,
    kinds,
    large,
    loading,
    memory,
    named,
    pairs,
    pretrained,
    resolve,
    trunk_energies,
)
from edlm.weights.sources import How

CPU = torch.device("cpu")
BIG = ("big", "big ar")
SETTINGS: dict[str, Any] = {
    **{"denoiser": None, "energy": None, "ar": None, "ar_form": "posterior", "tokenizer": None, "precision": None},
    **{"energy_rows": None, "length": None, "selection": "sir", "target_ess": None, "energy_temperature": 0.5},
    **{"nucleus": 1.0, "temperature": 1.0, "stride": None, "execution": "eager", "live": False, "num_steps": 4},
    **{"output": "a/b.jsonl", "batch_size": 4, "num_samples": 9, "num_particles": 3},
}


def called(*given: Any, **more: Any) -> Any:
    """What a stand-in was given."""
    return given, more


def loaded(name: str, *given: Any, **more: Any) -> Any:
    """A network that was loaded, which knows by what it was asked for."""
    denoiser = SimpleNamespace(max_length=9, network="net")
    ids = SimpleNamespace(mask_id=33, bos_id=7, pad_id=5)
    own = {"denoiser": denoiser, "network": f"network of {name}", "vocabulary": ids, "schedule": f"schedule of {name}"}
    own |= {"opening": (8,), "kernel": "kernel", "description": {"bos_id": 3}, "pad_id": 6, "asked": (name, given)}
    return SimpleNamespace(**own)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Loaders in the place of those that read folders: every call of one."""
    calls: list[Any] = []
    for name in ("denoiser", "baseline", "autoregressive", "large_denoiser", "large_start"):
        load = lambda *given, name=name: calls.append((name, *given)) or loaded(name, *given)  # noqa: E731
        monkeypatch.setattr(loading, name, load)
    for module in (resolve, named, loading, pairs):
        monkeypatch.setattr(module, "is_large", lambda path: path in BIG)
    monkeypatch.setattr(named, "require_there", lambda folders: None)
    monkeypatch.setattr(named, "require_ordered", lambda *given: calls.append(("ordered", *given)))
    monkeypatch.setattr(kinds, "held_by", lambda path: "d3pm" if path == "d3pm" else None)
    monkeypatch.setattr(trunk_energies, "is_one", lambda path: path == "trunk")
    return calls


@pytest.mark.parametrize(("length", "longest"), [(None, 2048), (12, 12)])
def test_a_large_denoiser_is_told_length_tokenizer_precision_and_device(
    length: int | None, longest: int, asked: list[Any]
) -> None:
    own = {**SETTINGS, "denoiser": "big", "length": length, "tokenizer": "t", "precision": "bfloat16"}
    found = resolve.load(own, CPU)
    assert asked == [("large_denoiser", "big", longest, "t", "bfloat16", CPU)]
    assert (found.vocabulary.mask_id, found.schedule, found.opening) == (33, "schedule of large_denoiser", (8,))
    assert (found.correction, found.ar, found.bos_id, found.baseline) == (None, None, None, None)


def test_one_of_ours_and_a_baseline_are_told_the_device(asked: list[Any]) -> None:
    assert resolve.load({**SETTINGS, "denoiser": "ours"}, CPU).schedule == "schedule of denoiser"
    assert resolve.load({**SETTINGS, "denoiser": "d3pm"}, CPU).baseline == "kernel"
    assert asked == [("denoiser", "ours", CPU), ("baseline", "d3pm", CPU)]


def test_an_ar_model_alone_is_told_how_it_is_read(asked: list[Any]) -> None:
    own = {"ar": "big ar", "length": 5, "energy_rows": 2, "precision": "bfloat16", "tokenizer": "t"}
    found = resolve.load({**SETTINGS, **own}, CPU)
    assert asked == [("autoregressive", "big ar", CPU, How(5, 2, torch.bfloat16, "t", "a"))]
    assert (found.ar, found.bos_id, found.denoiser, found.opening) == ("network of autoregressive", 3, None, ())


@pytest.mark.parametrize(
    ("denoiser", "energy", "ar", "loader"),
    [
        ("big", None, None, "large_denoiser"),
        ("big", "trunk", None, "large_start"),
        ("big", "chain_rule", None, "large_denoiser"),
        ("big", None, "ours", "large_start"),
        ("big", None, "big ar", "large_denoiser"),
        ("ours", None, "big ar", "denoiser"),
    ],
)
def test_a_large_denoiser_reads_what_opens_a_text_in_front_of_it_where_its_energy_does(
    denoiser: str, energy: str | None, ar: str | None, loader: str, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "check", lambda settings: None)
    monkeypatch.setattr(resolve, "_with_ar", lambda *given: "with an AR model")
    monkeypatch.setattr(loading, "energy", lambda *given: ("energy", "draft"))
    monkeypatch.setattr(corrections, "OfEnergy", called)
    resolve.load({**SETTINGS, "denoiser": denoiser, "energy": energy, "ar": ar}, CPU)
    assert asked[0][0] == loader


@pytest.mark.parametrize("scope", ["draft", "transition", "joint"])
def test_an_energy_corrects_at_its_temperature_with_rows_of_its_own(
    scope: str, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = SimpleNamespace(rows_at_once=None)
    energy = SimpleNamespace(module=SimpleNamespace(network=SimpleNamespace(trunk=trunk)))
    monkeypatch.setattr(resolve, "check", lambda settings: None)
    monkeypatch.setattr(loading, "energy", lambda *given: asked.append(given) or (energy, scope))
    monkeypatch.setattr(corrections, "OfEnergy", called)
    for rows in (None, 4):
        own = {**SETTINGS, "denoiser": "ours", "energy": "e", "energy_rows": rows}
        found = resolve.load(own, CPU)
        assert trunk.rows_at_once == rows
    expected = corrections.Joint(0.5) if scope == "joint" else ((energy,), {"temperature": 0.5})
    assert found.correction == expected
    assert asked[-1] == ("e", found.denoiser, found.vocabulary, CPU, "ours")
    chain_rule = resolve.load({**SETTINGS, "denoiser": "ours", "energy": "chain_rule"}, CPU)
    assert chain_rule.correction == corrections.ChainRule(0.5)
    assert asked[-1] == ("ordered", "ours", chain_rule.denoiser)


@pytest.mark.parametrize("form", ["posterior", "carry_over"])
@pytest.mark.parametrize(
    ("opened", "held", "bos", "opening", "front"),
    [(True, (8,), 7, (7,), None), (False, (8,), 7, (8,), None), (False, (), 7, (), 7), (True, (), None, (), None)],
)
@pytest.mark.parametrize(("length", "window"), [(None, 9), (5, 5), (20, 9)])
def test_an_ar_models_energy_reads_the_bos_once(
    form: str,
    opened: bool,
    held: tuple[int, ...],
    bos: int | None,
    opening: tuple[int, ...],
    front: int | None,
    length: int | None,
    window: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    beside = pairs.Beside("ar", bos, opened)
    monkeypatch.setattr(pairs, "autoregressive", lambda *given, **more: calls.append((given, more)) or beside)
    monkeypatch.setattr(energies, "residual_ar", called)
    monkeypatch.setattr(corrections, "OfEnergy", called)
    start = loaded("denoiser")
    own = {**SETTINGS, "denoiser": "d", "ar": "r", "ar_form": form, "length": length}
    sources = resolve.Sources(start.vocabulary, denoiser=start.denoiser, opening=held)
    found = resolve._with_ar(own, sources, start, CPU)
    assert calls == [(("r", start, CPU, How(length, output="a")), {"window": window})]
    assert (found.opening, found.bos_id) == (opening, front)
    energy = (("ar", 33, front, form == "carry_over", 6), {})
    assert found.correction == ((energy,), {"temperature": 0.5})


@pytest.mark.parametrize("over", ["big", "ours"])
def test_an_energy_over_a_network_of_ours_leaves_padding_out(
    over: str, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "is_joint", lambda path: False)
    monkeypatch.setattr(loading, "_description_of", lambda path: {"scope": "transition"})
    monkeypatch.setattr(loading, "weights_of", lambda path: f"hash of {path}")
    monkeypatch.setattr(trunk_energies, "load", called)
    monkeypatch.setattr(loading, "ENERGIES", {"transition": (None, called)})
    denoiser: Any = SimpleNamespace(network="net", told="schedule")
    ids: Any = SimpleNamespace(pad_id=5)
    built, kind = loading.energy("trunk", denoiser, ids, CPU, over)
    energy = ("trunk", "net", f"hash of {over}", ids, CPU), {}
    assert (built, kind) == (((energy, "schedule", None if over == "big" else 5), {}), "transition")
    with pytest.raises(ValueError, match=r"^energy = 'trunk' is over the network of its denoiser: say which folder"):
        loading.energy("trunk", denoiser, ids, CPU)


@pytest.mark.parametrize(("length", "longest"), [(None, 2048), (12, 12)])
@pytest.mark.parametrize(("opening", "own_bos"), [((7,), 7), ((), None)])
@pytest.mark.parametrize("reads", [5, 4000])
def test_what_opens_a_text_is_read_in_front_of_it(
    length: int | None,
    longest: int,
    opening: tuple[int, ...],
    own_bos: int | None,
    reads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(loading, "is_large", lambda path: True)

    def large_denoiser(*given: Any) -> loading.Found:
        network: Any = SimpleNamespace(max_length=reads, bos_id=None, requires_grad_=calls.append)
        calls.append(given)
        return loading.Found("subs", "big", network, None, {}, opening=opening)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "large_denoiser", large_denoiser)
    found = loading.denoiser("big", CPU, length)
    assert calls == [("big", longest + 1, None, None, CPU)]
    most = min(reads - (1 if opening else 0), longest)
    assert (found.network.bos_id, found.network.max_length, found.opening) == (own_bos, most, ())
    calls.clear()
    start = loading.large_start("big", length, "t", "float32", CPU)
    assert calls == [("big", longest + 1, "t", "float32", CPU), False]
    assert (start.network.bos_id, start.network.max_length, start.opening) == (own_bos, most, ())
    known = {"schedule": {"_component_": "edlm.schedules.log_linear"}, "time_conditioning": False}
    assert start.description == known


@pytest.mark.parametrize(("shifted", "length", "longest"), [(False, 9, 9), (False, 10, 9), (True, 8, 8), (True, 9, 8)])
def test_a_denoiser_is_adapted_further_up_to_what_it_reads(
    shifted: bool, length: int, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of nine positions, one of which a bos takes where states stand before their tokens."""
    ids = SimpleNamespace(bos_id=7)
    network = SimpleNamespace(shifted=shifted, max_length=9)
    monkeypatch.setattr(adaptation, "predicts_masks", lambda folder: True)
    monkeypatch.setattr(adaptation.whole, "read_json", lambda file: {"model_type": "llada"})
    monkeypatch.setattr(large, "load_vocabulary", lambda *given: ids if given == (Path("m"), "t") else None)
    monkeypatch.setattr(large, "read_diffusion", called)
    monkeypatch.setattr(decoders, "outline", lambda blueprint: network)
    monkeypatch.setattr(decoders, "load", lambda *given: SimpleNamespace(asked=given, max_length=9))
    monkeypatch.setattr(adapters, "add", lambda found, *ranks: setattr(found, "ranks", ranks))
    if length > longest:
        with pytest.raises(ValueError, match=f"^length = {length} must be at most {longest}, what m reads$"):
            adaptation.start("m", length, None, "t")
        return
    found: Any = adaptation.start("m", length, None, "t", (2, 4.0)).network
    assert found.asked == (((Path("m"), length + 1), {}), torch.float32)
    assert (found.bos_id, found.max_length, found.ranks) == (7 if shifted else None, length, (2, 4.0))
    with pytest.raises(ValueError, match=rf"^shifted = {not shifted}: m, a llada, has {shifted}; give null$"):
        adaptation.start("m", length, not shifted, "t")


@pytest.mark.parametrize(
    ("told", "asked_for", "shifted"), [(None, None, True), (None, False, False), (True, None, True)]
)
@pytest.mark.parametrize("reads", [5, 6])
def test_an_ar_model_is_adapted_with_a_place_for_what_opens_a_text(
    told: bool | None, asked_for: bool | None, shifted: bool, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids: Any = SimpleNamespace(bos_id=7, mask_id=40, size=41)
    read: list[Any] = []
    monkeypatch.setattr(adaptation, "predicts_masks", lambda folder: False)
    monkeypatch.setattr(large, "adapted_by", lambda folder: None if told is None else {"shifted": told})
    monkeypatch.setattr(large, "load_vocabulary", lambda folder, tokenizer, add_mask: ids if add_mask else None)
    monkeypatch.setattr(large, "read_start", lambda *given: read.append(given) or "blueprint")
    monkeypatch.setattr(decoders, "load", lambda *given: SimpleNamespace(max_length=reads))
    if reads < 6:
        with pytest.raises(ValueError, match=r"^length = 6 must be at most 5, what m reads$"):
            adaptation.start("m", 6, asked_for)
        return
    made = adaptation.start("m", 6, asked_for)
    assert (made.made, made.tokenizer, made.vocabulary) == (True, Path("m/tokenizer.json"), ids)
    ((folder, length, _, by_transformers),) = read
    assert (folder, length) == (Path("m"), 7 if shifted else 6)
    monkeypatch.setattr(pretrained, "adapted", called)
    assert by_transformers("f", "c", 0) == (("f", "c", 6, shifted, 7 if shifted else None, 40), {})


def test_weights_are_hashed_of_ours_and_named_of_a_run_that_adapts_a_large_one(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = {"big": Path("big/checkpoints/step_00000004"), "big ar": Path("big ar")}
    monkeypatch.setattr(resolve.sources, "folder_of", lambda path: newest.get(path, Path(path)))
    monkeypatch.setattr(loading, "weights_of", lambda path: f"hash of {path}")
    own = {**SETTINGS, "denoiser": "big", "ar": "big ar"}
    assert resolve.weights_of(own) == {"denoiser": "step_00000004"}
    own = {**SETTINGS, "denoiser": "ours", "energy": "e", "ar": None}
    assert resolve.weights_of(own) == {"denoiser": "hash of ours", "energy": "hash of e"}
    assert resolve.weights_of({**own, "energy": "chain_rule"}) == {"denoiser": "hash of ours"}


@pytest.mark.parametrize(
    ("energy", "ar", "other", "own", "candidates"),
    [(None, None, None, 0, 1), (None, "big ar", "energy", 0, 3), ("trunk", None, "denoiser", 5, 3)],
)
@pytest.mark.parametrize(("length", "longest", "tokens"), [(None, 2048, 9), (4, 4, 4), (20, 20, 9)])
def test_a_plan_of_memory_is_of_what_is_drawn_at_once(
    energy: str | None,
    ar: str | None,
    other: str | None,
    own: int,
    candidates: int,
    length: int | None,
    longest: int,
    tokens: int,
    asked: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In float32, of four of nine texts at once; what was trained of an energy over a trunk is held beside it."""
    head = SimpleNamespace(out_features=40)
    outlines = {name: SimpleNamespace(max_length=9, head=head, rows_at_once=None) for name in ("denoiser", "energy")}
    (tmp_path / "network.safetensors").write_bytes(b"12345")
    monkeypatch.setattr(resolve, "check", lambda settings: None)
    monkeypatch.setattr(resolve.sources, "folder_of", Path)
    monkeypatch.setattr(large, "read_diffusion", lambda *given: asked.append(given) or "denoiser")
    monkeypatch.setattr(resolve.sources, "read", lambda *given: asked.append(given) or "energy")
    monkeypatch.setattr(decoders, "outline", lambda name, dtype: outlines[name] if dtype is torch.float32 else None)
    monkeypatch.setattr(checkpoints, "find_network", lambda path: tmp_path if path == "trunk" else None)
    sizes = memory.MemoryPlan(5 * 10**9, 10**8, 3 * 10**7, 10**7, 2 * 10**8)
    monkeypatch.setattr(memory, "memory_plan", lambda *given, **more: asked.append((given, more)) or sizes)
    settings = {"denoiser": "big", "energy": energy, "ar": ar, "length": length, "energy_rows": 2}
    plan = resolve.memory_plan({**SETTINGS, **settings, "precision": "float32"})
    network, weighed = outlines["denoiser"], None if other is None else outlines[other]
    assert asked[0] == (Path("big"), longest)
    assert asked[1:-1] == ([] if ar is None else [("big ar", How(length, 2, torch.float32, None, "a"), 40)])
    assert asked[-1] == ((network, weighed, 4, candidates, tokens), {"trained": own})
    assert network.rows_at_once == (2 if energy else None)
    assert plan is not None
    assert [line.split() for line in plan.splitlines()] == [
        ["weights", "5.00", "GB"],
        [*["drafts", "0.10", "GB"], *f"4 texts of {tokens} tokens, {candidates} candidates each".split()],
        *(f"{name} GB".split() for name in ("denoise 0.03", "propose 0.01", "weigh 0.20")),
        [
            *["at", "most", "5.30", "GB"],
            *["weights,", "drafts", "and", "the", "largest", "of", "the", "rest;", "by", "formula"],
        ],
    ]


def test_networks_of_ours_are_compared_with_the_first_but_for_what_is_compared_elsewhere(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "require_same_vocabulary", lambda *given: asked.append(given))
    named.require_same_vocabulary({"denoiser": "a", "energy": "trunk", "joint": "b", "ar": "c"})
    assert asked == [("a", "a"), ("a", "b"), ("a", "c")]
    named.require_same_vocabulary({"denoiser": "big", "ar": "c", "energy": "trunk"})
    with pytest.raises(
        ValueError, match=r"^denoiser = 'big' holds a large model, which shares no vocabulary with 'b'$"
    ):
        named.require_same_vocabulary({"denoiser": "big", "joint": "b"})
