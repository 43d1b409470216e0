"""Denoisers made of AR models: the law at the start, shifted or not, adapters, and folders that others read."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_folder import weights_of
from large_folders import EPS, LENGTH, THETA, H, V, close, reference
from torch import Tensor

from edlm.models import autoregressive, denoisers
from edlm.nn import adapters, decoders
from edlm.nn.decoders import DecoderNetwork
from edlm.weights import adaptation, large, loading, whole

BOS, NEW_MASK = 3, V
LENGTHS = LENGTH - 2
every_family = pytest.mark.parametrize(("family", "tied"), [("llama", False), ("llama", True), ("qwen2", False)])
shifted_or_not = pytest.mark.parametrize("shifted", [True, False])


def start(folder: Path, shifted: bool = True, **options: Any) -> adaptation.Start:
    return adaptation.start(folder, LENGTHS, shifted, **options)


def write_out(found: adaptation.Start, folder: Path, notes: dict[str, Any]) -> None:
    """The folder that a run would keep of a network as it is."""
    whole.write_folder(folder, lambda target: found.form.fill(target, found.network, found.vocabulary, notes))


def texts(mask_id: int, seed: int = 0, rows: int = 3) -> Tensor:
    """Tokens with a mask at every other place or so."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, V, (rows, LENGTHS), generator=generator)
    return torch.where(torch.rand(tokens.shape, generator=generator) < 0.5, mask_id, tokens)


def expected_logits(family: str, state: dict[str, Tensor], x: Tensor, shifted: bool, causal: bool = False) -> Tensor:
    """What the AR model's weights give in plain torch, the mask a row that is the mean of all: the known ids alone."""
    rows = state["model.embed_tokens.weight"]
    extended = {**state, "model.embed_tokens.weight": torch.cat([rows, rows.mean(0, keepdim=True)])}
    if not shifted:
        return reference(family, extended, x, causal)
    return reference(family, extended, torch.nn.functional.pad(x, (1, 0), value=BOS), causal)[:, :-1]


@every_family
@shifted_or_not
def test_at_its_start_it_has_the_law_that_the_weights_give_with_attention_both_ways(
    family: str, tied: bool, shifted: bool, tmp_path: Path
) -> None:
    state = weights_of(tmp_path / "ar", family, tied)
    found = start(tmp_path / "ar", shifted)
    x = texts(NEW_MASK)
    with torch.no_grad():
        logits = found.network.head(found.network(x))
    close(logits[..., :V], expected_logits(family, state, x, shifted))
    assert (logits[..., NEW_MASK] == -torch.inf).all()
    causal = expected_logits(family, state, x, shifted, causal=True)
    assert (causal - logits[..., :V]).abs().max() > 0.1, "else it tells nothing of the direction"
    assert found.vocabulary.mask_id == NEW_MASK
    assert found.network.max_length == LENGTHS


@every_family
def test_where_attention_is_not_open_yet_its_states_are_those_of_causal_attention(
    family: str, tied: bool, tmp_path: Path
) -> None:
    """At step 0 of an opening the shifted network predicts as the AR model does, the bos in front read too."""
    state = weights_of(tmp_path / "ar", family, tied)
    network = start(tmp_path / "ar").network
    x = texts(NEW_MASK)
    with torch.no_grad():
        logits = network.head(network(x, attention=torch.ones(LENGTHS + 1, LENGTHS + 1, dtype=torch.bool).tril()))
    close(logits[..., :V], expected_logits(family, state, x, shifted=True, causal=True))


def test_shifted_with_causal_attention_its_states_are_those_that_predict_each_token(tmp_path: Path) -> None:
    """Log-probabilities of the adapted network are the AR model's own, the first token's under a bos among them."""
    weights_of(tmp_path / "ar", tied=True)
    network = start(tmp_path / "ar").network
    for layer in network.layers:
        layer.attn.is_causal = True
    x = texts(0)
    ar = decoders.load(large.read_autoregressive(tmp_path / "ar", LENGTHS + 1, vocab_size=V + 1))
    with torch.no_grad():
        own = network.head(network(x)).log_softmax(-1).gather(-1, x.unsqueeze(-1)).squeeze(-1)
        exact = autoregressive.ar_log_prob(ar, x, NEW_MASK, BOS)
    close(own, exact)


def test_a_mask_of_the_models_own_stays_what_it_is(tmp_path: Path) -> None:
    state = weights_of(tmp_path / "ar", mask_token_id=33)
    found = start(tmp_path / "ar", shifted=False)
    x = texts(33)
    with torch.no_grad():
        close(found.network.head(found.network(x)), reference("llama", state, x))
    assert (found.vocabulary.mask_id, found.vocabulary.size) == (33, V)
    assert not hasattr(found.network.embedding, "mask")


# ---- Adapters


@shifted_or_not
def test_adapters_change_nothing_at_first_and_merged_they_give_what_they_gave(shifted: bool, tmp_path: Path) -> None:
    weights_of(tmp_path / "ar", tied=True)
    plain, adapted = start(tmp_path / "ar", shifted), start(tmp_path / "ar", shifted, adapter=(2, 6.0))
    x = texts(NEW_MASK)
    with torch.no_grad():
        close(adapted.network(x), plain.network(x), 1e-6)
    for seed, (name, value) in enumerate(adapted.network.named_parameters()):
        assert value.requires_grad == ("lora" in name or name == "embedding.mask"), name
        if value.requires_grad:
            torch.nn.init.normal_(value, std=0.3, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        given = adapted.network(x)
    assert (given - plain.network(x)).abs().max() > 0.1
    before = {name: value.clone() for name, value in adapted.network.state_dict().items()}
    whole.write_folder(
        tmp_path / "out", lambda target: adapted.form.fill(target, adapted.network, adapted.vocabulary, {})
    )
    with torch.no_grad():
        close(large.load_diffusion(tmp_path / "out", LENGTHS)(x), given)
    for name, value in adapted.network.state_dict().items():
        assert torch.equal(value, before[name]), "merging changes nothing of the network"


def test_every_product_of_every_block_is_adapted_and_counts_few_weights(tmp_path: Path) -> None:
    weights_of(tmp_path / "ar", "qwen2")
    network = start(tmp_path / "ar", adapter=(1, 1.0)).network
    found = {name.rpartition(".lora_a")[0] for name, _ in network.named_parameters() if ".lora_a" in name}
    products = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.output_proj", "mlp.w1", "mlp.w2", "mlp.w3")
    assert found == {f"layers.{i}.{name}" for i in range(2) for name in products}


# ---- Folders


def written(folder: Path, family: str, tied: bool, shifted: bool, adapter: Any = None) -> adaptation.Start:
    """An adaptation whose every trained weight has changed, and its folder `folder / out`."""
    weights_of(folder / "ar", family, tied)
    found = start(folder / "ar", shifted, adapter=adapter)
    state = {name: value for name, value in found.network.named_parameters() if value.requires_grad}
    for seed, value in enumerate(state.values()):
        with torch.no_grad():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)))
    notes = {"objective": "nelbo", "step": 7}
    write_out(found, folder / "out", notes)
    return found


@every_family
@shifted_or_not
@pytest.mark.parametrize("adapter", [None, (2, 4.0)])
def test_the_folder_that_it_writes_holds_the_same_denoiser(
    family: str, tied: bool, shifted: bool, adapter: Any, tmp_path: Path
) -> None:
    found = written(tmp_path, family, tied, shifted, adapter)
    loaded = loading.large_denoiser(str(tmp_path / "out"), LENGTHS, None, None, torch.device("cpu"))
    x, places = texts(NEW_MASK), torch.arange(3 * LENGTHS)
    own = denoisers.subs(found.network, NEW_MASK)
    with torch.no_grad():
        theirs, ours = (each.logits(each.network(x, None, places))[:, :V] for each in (loaded.denoiser, own))
        close(theirs, ours)
    assert loaded.vocabulary.fingerprint == found.vocabulary.fingerprint
    assert loaded.opening == ()
    assert loaded.network.max_length == LENGTHS
    assert whole.read_json(tmp_path / "out" / "config.json")["edlm"]["step"] == 7


@every_family
@shifted_or_not
def test_transformers_reads_the_folder_and_looks_both_ways(
    family: str, tied: bool, shifted: bool, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs pip install 'edlm-torch[judge]'")
    found = written(tmp_path, family, tied, shifted)
    x = texts(NEW_MASK)
    read = torch.nn.functional.pad(x, (1, 0), value=BOS) if shifted else x
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    mask = torch.zeros(len(x), 1, read.shape[1], read.shape[1])  # added to scores: every token reads every other
    with torch.no_grad():
        theirs = model(read, attention_mask=mask).logits
        close(theirs[:, : x.shape[1], :V], found.network.head(found.network(x))[..., :V])
        assert torch.equal(model(read).logits, theirs), "its config says so itself"
    assert model.config.mask_token_id == NEW_MASK


@pytest.mark.parametrize("adapter", [None, (2, 4.0)])
def test_a_run_reads_the_weights_that_it_trains_as_they_were(adapter: Any, tmp_path: Path) -> None:
    found = written(tmp_path, "llama", True, True, adapter)
    again = start(tmp_path / "ar", True, adapter=adapter)
    wanted = dict(found.network.named_parameters())
    values = again.form.read(tmp_path / "out", again.vocabulary)
    assert values.keys() == wanted.keys()
    for name, value in values.items():
        assert torch.equal(value, wanted[name]), name
    file = tmp_path / "out" / adaptation.AVERAGE
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"average\.safetensors: damaged or exchanged"):
        again.form.read(tmp_path / "out", again.vocabulary)


def test_what_stands_beside_the_weights_is_kept_and_the_type_is_theirs(tmp_path: Path) -> None:
    weights_of(tmp_path / "ar", torch_dtype="bfloat16")
    beside = ("special_tokens_map.json", "generation_config.json", "tokenizer_config.json")
    for name in beside:
        (tmp_path / "ar" / name).write_text(json.dumps({"from": name}))
    found = start(tmp_path / "ar")
    write_out(found, tmp_path / "out", {})
    assert [whole.read_json(tmp_path / "out" / name) for name in beside] == [{"from": name} for name in beside]
    config = whole.read_json(tmp_path / "out" / "config.json")
    assert ("torch_dtype" in config, config["dtype"], config["vocab_size"]) == (False, "float32", V + 1)
    weights_of(tmp_path / "other", tied=True)
    assert found.weights == start(tmp_path / "ar").weights != start(tmp_path / "other").weights


def test_what_was_adapted_is_adapted_further(tmp_path: Path) -> None:
    found = written(tmp_path, "llama", True, True)
    again = start(tmp_path / "out")
    x = texts(NEW_MASK)
    with torch.no_grad():
        close(again.network(x), found.network(x))
    assert isinstance(again.network, DecoderNetwork)
    assert adapters.merged(again.network).keys() == adapters.merged(found.network).keys()
    with pytest.raises(ValueError, match=r"shifted = False: .*out was adapted with shifted = True"):
        start(tmp_path / "out", shifted=False)
    with pytest.raises(ValueError, match="holds a denoiser made of an autoregressive model"):
        large.read_autoregressive(tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"bos_token_id": None}, "needs a bos to read in front of a text"),
        ({"max_position_embeddings": LENGTHS}, f"length = {LENGTHS} must be at most {LENGTHS - 1}"),
        ({"model_type": "mamba"}, "model_type = 'mamba' must be one of"),
        ({"edlm": {"adapted": {"shifted": 1, "bos_id": 3}}}, "edlm.adapted = {'shifted': 1, 'bos_id': 3} must be"),
        ({"edlm": {"adapted": {"shifted": False, "bos_id": 3}}}, "edlm.adapted.bos_id = 3 must be an id of a shifted"),
        (
            {"edlm": {"adapted": {"shifted": True, "bos_id": V}}},
            f"edlm.adapted.bos_id = {V} must be an id of a shifted",
        ),
    ],
)
def test_what_cannot_be_adapted_is_said_in_one_line(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    weights_of(tmp_path / "ar")
    file = tmp_path / "ar" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    with pytest.raises(ValueError, match=re.escape(said)) as refusal:
        start(tmp_path / "ar")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"length": 0}, "length = 0 must be at least 1"),
        ({"length": 2.5}, "length = 2.5 must be a whole number of at least 1"),
        ({"adapter": (0, 1.0)}, "rank = 0 must be at least 1"),
        ({"adapter": (2, float("inf"))}, "alpha = inf must be finite"),
    ],
)
def test_numbers_that_make_no_start_are_refused_in_python_too(asked: dict[str, Any], said: str, tmp_path: Path) -> None:
    weights_of(tmp_path / "ar")
    with pytest.raises(ValueError, match=re.escape(said)):
        adaptation.start(tmp_path / "ar", **{"length": 4, "shifted": True, **asked})


def test_the_numbers_that_the_folders_are_written_with_are_not_those_of_defaults() -> None:
    assert (THETA, EPS, H) != (10000.0, 1e-6, 4096)
