"""Contrast of an AR model's residual energy: the data's own log-probability beside the drafts', and what is trained."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import masked_positions, randomise
from smallest import CLOSING, LENGTH, NETWORK, UPDATES, settings_of, words_of
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.data import vocabulary
from edlm.models import denoisers, energies
from edlm.nn.networks import Transformer
from edlm.objectives import batches, contrastive, losses, transition
from edlm.process import schedules
from edlm.recipes.edlm_nce import main
from edlm.training import log
from edlm.weights import checkpoints, loading

V, L, MASK = 3, 3, 2
forms = pytest.mark.parametrize("carry_over", [False, True])


def networks(vocab_size: int = V, length: int = L) -> tuple[Transformer, Transformer]:
    """A denoiser's network and a causal one, of random weights, in double precision."""
    sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "conditioning_size": 0}
    both = Transformer(vocab_size, length, **sizes), Transformer(vocab_size, length, **sizes, causal=True)
    for seed, network in enumerate(both):
        randomise(network.double(), seed)
    return both


def energy_of(ar: Transformer, carry_over: bool, **keys: Tensor) -> Tensor:
    energy = energies.residual_ar(ar, MASK, MASK, carry_over)
    return energy(TensorDict(keys))[contracts.ENERGY]


def log_p(denoiser: Any, x_t: Tensor, texts: Tensor) -> Tensor:
    """`log p_theta` of texts (b, k, l) at the masks of x_t (b, l), zero elsewhere."""
    with torch.no_grad():
        logits = denoiser.logits(denoiser.network(x_t).flatten(0, 1)).log_softmax(-1).view(*x_t.shape, V)
    found = logits.unsqueeze(1).expand(*texts.shape, V).gather(-1, texts.unsqueeze(-1)).squeeze(-1)
    return torch.where((x_t == MASK).unsqueeze(1), found, 0.0)


@forms
def test_data_and_drafts_are_weighed_with_their_own_log_probabilities(carry_over: bool) -> None:
    network, ar = networks()
    denoiser, energy = denoisers.subs(network, MASK), energies.residual_ar(ar, MASK, MASK, carry_over)
    x_0 = torch.randint(0, V - 1, (6, L), generator=torch.Generator().manual_seed(0))
    pipeline = contrastive.contrastive(denoiser, energy, schedules.log_linear(), 2)
    out = pipeline(batches.training_batch(x_0, 0, torch.arange(6), 0, 6))
    x_t, texts = out[contracts.X_T], out[contracts.CANDIDATES]
    assert torch.equal(texts[:, 0], x_0)
    expected = energy_of(
        ar,
        carry_over,
        candidates=texts,
        x_t=x_t,
        positions=masked_positions(x_t, MASK),
        log_p_candidates=log_p(denoiser, x_t, texts),
    )
    torch.testing.assert_close(out[contracts.ENERGY], expected)
    torch.testing.assert_close(out[contracts.LOSS], losses.nce(expected[:, 0], expected[:, 1:]))
    out[contracts.LOSS].mean().backward()
    assert all(parameter.grad is None for parameter in network.parameters()), "the denoiser is frozen"
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in ar.parameters())


def test_ranking_is_least_where_the_ar_model_is_the_law_of_the_data() -> None:
    """The whole loss by enumeration: every text, every set of masks, every draft. Binary contrast is least elsewhere.

    The ratio of data to drafts is the posterior form's up to Z(x_t), to which ranking alone is blind.
    """
    network, ar = networks()
    denoiser = denoisers.subs(network, MASK)
    texts = torch.tensor(list(itertools.product(range(V - 1), repeat=L)))
    weights, x_ts, pairs = [], [], []
    with torch.no_grad():
        law = (-energy_of(ar, False, **plain(texts))).exp().squeeze(1)
    assert float(law.sum()) == pytest.approx(1.0)
    for masked in itertools.product([False, True], repeat=L):
        x_t = torch.where(torch.tensor(masked), MASK, texts)
        drawn = log_p(denoiser, x_t, texts.expand(len(texts), *texts.shape)).sum(-1).exp()
        agrees = ((x_t == MASK).unsqueeze(1) | (texts == x_t.unsqueeze(1))).all(-1)
        for i, j in itertools.product(range(len(texts)), repeat=2):
            weights.append(law[i] * drawn[i, j] * agrees[i, j])
            x_ts.append(x_t[i])
            pairs.append(torch.stack([texts[i], texts[j]]))
    x_t, both = torch.stack(x_ts), torch.stack(pairs)
    positions, drawn = masked_positions(x_t, MASK), log_p(denoiser, x_t, both)
    found = energy_of(ar, False, candidates=both, x_t=x_t, positions=positions, log_p_candidates=drawn)
    slopes = []
    for objective in (losses.info_nce, losses.nce):
        loss = (torch.stack(weights).detach() * objective(found[:, 0], found[:, 1:])).sum()
        gradients = torch.autograd.grad(loss, list(ar.parameters()), retain_graph=True, allow_unused=True)
        slopes.append(max(float(each.abs().max()) for each in gradients if each is not None))
    assert slopes[0] < 1e-9
    assert slopes[1] > 1e-3


def plain(texts: Tensor) -> dict[str, Tensor]:
    """Texts that are all masked, by a denoiser that says nothing: the energy is their negative log-probability."""
    x_t = torch.full_like(texts, MASK)
    zeros = torch.zeros(len(texts), 1, L, dtype=torch.float64)
    return {
        "candidates": texts.unsqueeze(1),
        "x_t": x_t,
        "positions": masked_positions(x_t, MASK),
        "log_p_candidates": zeros,
    }


def test_it_weighs_no_transitions() -> None:
    network, ar = networks()
    energy = energies.residual_ar(ar, MASK, MASK, False)
    with pytest.raises(ValueError, match="reads log_p_candidates weighs whole drafts, and no transitions"):
        transition.contrastive(denoisers.subs(network, MASK), energy, schedules.log_linear(), (2, 4))


# ---- By the recipe


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A denoiser and an AR model, beside each other."""
    monkeypatch.setattr(log, "draw_curves", lambda _: None)
    notes = {"schedule": {"_component_": "edlm.schedules.log_linear"}, "time_conditioning": False}
    sizes = {**NETWORK, "conditioning_size": 0}
    for name, causal in (("denoiser", False), ("ar", True)):
        network = Transformer(28, LENGTH, **sizes, causal=causal)
        randomise(network, 3 + causal)
        about = {"bos_id": 27} if causal else notes
        checkpoints.save_network(tmp_path / name, network, vocabulary.characters(), about)
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    named = {"denoiser": folder / "denoiser", "ar": folder / "ar", "output_dir": folder / "energy", "pretrain": None}
    shown = {
        "scope": "draft",
        **{f"closing.{key}": value for key, value in CLOSING.items()},
        "samples.num_samples": 1,
        "samples.num_steps": 2,
        "samples.num_particles": 2,
        "report_particles": 2,
    }
    return [*words_of({**named, **UPDATES, **shown, "threads": 1, "optimizer.lr": 0.05}), *more]


@pytest.mark.slow
@forms
def test_its_weights_are_trained_from_those_of_the_folder_and_are_an_ar_model_again(
    carry_over: bool, folder: Path
) -> None:
    form = "carry_over" if carry_over else "posterior"
    main(settings_of("edlm_nce", *words(folder, f"ar_form={form}", "steps=2", "objective=info_nce")))
    found = loading.autoregressive(str(folder / "energy"), torch.device("cpu"))
    assert found.description["bos_id"] == 27
    assert found.description["ar_form"] == form
    before = checkpoints.load_network(folder / "ar").state_dict()
    moved = [float((value - before[name]).abs().max()) for name, value in found.network.state_dict().items()]
    assert 0 < max(moved) < 0.5


@pytest.mark.parametrize("more", ["scope=transition", "embedding=shared"])
def test_what_an_ar_model_is_not_trained_by_is_refused(more: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=f"{more.split('=', maxsplit=1)[0]} = '{more.split('=')[1]}' must be"):
        main(settings_of("edlm_nce", *words(folder, more)))
