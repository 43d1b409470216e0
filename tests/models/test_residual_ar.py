"""The autoregressive energy against exact laws: its normaliser, its two forms, and what counts."""

from typing import Any

import builders
import pytest
import torch
import torch.nn.functional as F
from ar_energies import BOS, LENGTH, MASK, SYMBOLS, forms, random_input, run, small_network
from builders import at
from oracles import (
    Lookup,
    OracleDenoiser,
    all_masked_states,
    all_sequences,
    ar_energy,
    ar_log_prob,
    empirical_law,
    marginal_table,
    proposal_log_prob,
    random_joint,
    random_marginals,
    sampler_law,
    sir,
    total_variation,
    with_masks,
)
from torch import Tensor, nn

import edlm
from edlm.models import energies
from edlm.process import schedules

JOINT = random_joint(0, SYMBOLS, LENGTH, 1.5)
MARGINALS = random_marginals(1, SYMBOLS, LENGTH)
STATES = all_masked_states(SYMBOLS, LENGTH)


class Identity(nn.Identity):
    """A head that leaves logits as they are and says how many there are."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.out_features = size


class TabularAr(nn.Module):
    """A causal network whose logits are the exact conditionals of a joint law.

    The logits are shifted by a number per position, and the mask's is large: a reader has to leave it out and to
    normalise. With a bos the first input is that token, without one it is the text's own first token.
    """

    def __init__(self, joint: Tensor, bos: bool) -> None:
        super().__init__()
        self.joint, self.bos, self.symbols = joint, bos, joint.shape[0]
        self.head, self.max_length = Identity(self.symbols + 2), joint.ndim

    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        if self.bos:
            assert (tokens[:, 0] == BOS).all()
        first = 0 if self.bos else 1
        read = tokens[:, 1:] if self.bos else tokens
        prefix = torch.cat([read, read.new_zeros(len(tokens), 1)], dim=1).clamp(max=self.symbols - 1)
        prefix = prefix[:, : self.joint.ndim]
        logits = torch.full((len(tokens), prefix.shape[1] - first, self.symbols + 2), -torch.inf, dtype=torch.float64)
        for i in range(first, prefix.shape[1]):
            for symbol in range(self.symbols):
                guess = torch.cat([prefix[:, :i], torch.full_like(prefix[:, i:], symbol)], dim=1)
                guess = torch.cat([guess, guess.new_zeros(len(guess), self.joint.ndim - guess.shape[1])], dim=1)
                logits[:, i - first, symbol] = ar_log_prob(self.joint, guess)[:, i]
        logits[..., self.symbols] = 5.0
        logits = logits + torch.arange(logits.shape[1], dtype=torch.float64).unsqueeze(-1)
        return at(F.pad(logits, (0, 0, 0, tokens.shape[1] - logits.shape[1])), positions)


def every_draft(x_t: Tensor) -> Tensor:
    """All sequences for every row, whether they agree with it or not: (b, m^l, l)."""
    return all_sequences(SYMBOLS, LENGTH).expand(len(x_t), -1, -1)


def agrees(candidates: Tensor, x_t: Tensor) -> Tensor:
    return ((candidates == x_t.unsqueeze(1)) | (x_t == MASK).unsqueeze(1)).all(-1)


def drawn_log_prob(marginals: Tensor, candidates: Tensor, x_t: Tensor) -> Tensor:
    """`log_p_candidates` as a sampler hands it over: zero where x_t is visible, (b, k, l)."""
    log_p = marginals[x_t.unbind(-1)].unsqueeze(1).expand(*candidates.shape, -1)
    log_p = log_p.gather(-1, candidates.clamp(max=MASK).unsqueeze(-1)).squeeze(-1)
    return torch.where((x_t == MASK).unsqueeze(1), log_p, 0.0)


def with_bos(carry_over: bool, pad_id: int | None = None) -> Any:
    return energies.residual_ar(TabularAr(JOINT, bos=True), MASK, BOS, carry_over, pad_id)


def without_bos(carry_over: bool) -> Any:
    return energies.residual_ar(TabularAr(JOINT, bos=False), MASK, None, carry_over)


# ---- The formula


@forms
def test_it_is_the_exact_energy(carry_over):
    drafts = every_draft(STATES)
    ours = run(with_bos(carry_over), drafts, STATES, drawn_log_prob(MARGINALS, drafts, STATES))
    exact = ar_energy(JOINT, MARGINALS, carry_over)(drafts, STATES)
    possible = agrees(drafts, STATES)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours[possible], exact[possible], rtol=0.0, atol=1e-12)


def normaliser(energy: Any, x_t: Tensor) -> Tensor:
    """`sum_x p_theta(x | x_t) exp(-E)` over the completions of x_t, (b,)."""
    drafts = every_draft(x_t)
    log_p = drawn_log_prob(MARGINALS, drafts, x_t)
    weights = (log_p.sum(-1) - run(energy, drafts, x_t, log_p)).exp()
    return torch.where(agrees(drafts, x_t), weights, 0.0).sum(-1)


def test_the_normaliser_of_the_carry_over_form_is_one():
    torch.testing.assert_close(
        normaliser(with_bos(True), STATES), torch.ones(len(STATES), dtype=torch.float64), rtol=0.0, atol=1e-12
    )


def test_the_normaliser_of_the_posterior_form_is_the_probability_of_the_visible_tokens():
    visible = with_masks(JOINT, LENGTH)[STATES.unbind(-1)]
    torch.testing.assert_close(normaliser(with_bos(False), STATES), visible, rtol=0.0, atol=1e-12)


def test_the_posterior_form_targets_the_posterior_and_the_carry_over_form_looks_left_only():
    x_t = torch.tensor([[MASK, MASK, 1]])
    drafts = every_draft(x_t)
    log_p = drawn_log_prob(MARGINALS, drafts, x_t)
    kept = agrees(drafts, x_t)[0]
    law = {c: (log_p.sum(-1) - run(with_bos(c), drafts, x_t, log_p)).exp()[0, kept] for c in (False, True)}
    joint = JOINT[:, :, 1].flatten()
    torch.testing.assert_close(law[False] / law[False].sum(), joint / joint.sum())
    torch.testing.assert_close(law[True], JOINT.sum(-1).flatten())


def test_an_energy_of_the_denoisers_own_law_says_nothing():
    """A law of independent tokens is its own denoiser: E is the same for all drafts, 0 in the carry-over form."""
    single = random_joint(3, SYMBOLS, 1)
    law = single[:, None, None] * single.flip(0)[:, None] * single.roll(1)
    table = marginal_table(law)
    drafts = every_draft(STATES)
    log_p = drawn_log_prob(table, drafts, STATES)
    possible = agrees(drafts, STATES)
    energy = run(energies.residual_ar(TabularAr(law, True), MASK, BOS, True), drafts, STATES, log_p)
    assert energy[possible].abs().max() < 1e-12


# ---- What counts


@forms
def test_without_a_bos_position_0_is_left_out_of_both_parts(carry_over):
    drafts = every_draft(STATES)
    log_p = drawn_log_prob(MARGINALS, drafts, STATES)
    ours = run(without_bos(carry_over), drafts, STATES, log_p)
    counts = (STATES == MASK).unsqueeze(1) if carry_over else torch.ones(1, 1, LENGTH, dtype=torch.bool)
    terms = torch.where(counts, log_p - ar_log_prob(JOINT, drafts), 0.0)
    possible = agrees(drafts, STATES)
    torch.testing.assert_close(ours[possible], terms[..., 1:].sum(-1)[possible], rtol=0.0, atol=1e-12)
    shifted = log_p + torch.tensor([7.0, 0.0, 0.0], dtype=torch.float64)
    assert torch.equal(run(without_bos(carry_over), drafts, STATES, shifted), ours)


@forms
def test_the_normaliser_without_a_bos_given_the_first_token(carry_over):
    x_t = STATES[STATES[:, 0] != MASK]
    visible = with_masks(JOINT, LENGTH)
    expected = visible[x_t.unbind(-1)] / visible[x_t[:, 0], MASK, MASK]
    expected = torch.ones_like(expected) if carry_over else expected
    torch.testing.assert_close(normaliser(without_bos(carry_over), x_t), expected, rtol=0.0, atol=1e-12)


def test_a_text_of_one_given_token_has_no_energy():
    energy = energies.residual_ar(small_network(), MASK, None, carry_over=False)
    x = torch.tensor([[[1]], [[2]]])
    assert run(energy, x, x.squeeze(1), torch.zeros(2, 1, 1)).tolist() == [[0.0], [0.0]]


PAD = 0


@forms
@pytest.mark.parametrize("bos", [None, 4])
def test_padding_counts_in_neither_part(carry_over, bos):
    network = small_network(vocab_size=6)
    energy = energies.residual_ar(network, MASK, bos, carry_over, pad_id=PAD)
    x_t = torch.tensor([[1, MASK, 2, MASK, PAD, PAD], [MASK, MASK, 5, 1, PAD, PAD]])
    drafts = torch.where(x_t.unsqueeze(1) == MASK, torch.tensor([[[5], [2], [1]]]).expand(2, 3, 6), x_t.unsqueeze(1))
    log_p = torch.where((x_t == MASK).unsqueeze(1), -0.5, 0.0).expand(2, 3, 6)
    padded = run(energy, drafts, x_t, log_p)
    short = run(energy, drafts[..., :4], x_t[:, :4], log_p[..., :4])
    torch.testing.assert_close(padded, short, rtol=0.0, atol=1e-6)


@forms
def test_a_drawn_padding_token_counts_like_any_other(carry_over):
    """Else the set of positions would depend on the draw, and Z with it."""
    drafts = every_draft(STATES)
    log_p = drawn_log_prob(MARGINALS, drafts, STATES)
    all_masked = STATES == MASK
    rows = all_masked.all(1)
    with_pad, plain = with_bos(carry_over, pad_id=PAD), with_bos(carry_over)
    assert torch.equal(run(with_pad, drafts, STATES, log_p)[rows], run(plain, drafts, STATES, log_p)[rows])


@forms
def test_a_candidate_with_a_mask_that_counts_is_impossible(carry_over):
    x_t = torch.tensor([[0, MASK, MASK]])
    drafts = torch.tensor([[[0, 1, MASK], [0, MASK, 2], [0, 1, 2]]])
    energy = run(with_bos(carry_over), drafts, x_t, drawn_log_prob(MARGINALS, drafts, x_t).nan_to_num(neginf=0.0))
    assert energy[0, :2].tolist() == [torch.inf, torch.inf]
    assert energy[0, 2].isfinite()


@forms
def test_the_mask_in_front_is_a_bos_like_any_other(carry_over):
    """A vocabulary without a bos has one id that no text holds; a network reads it by its embedding, as any other."""
    network = small_network().double()
    drafts, x_t, log_p = random_input(4, 3, 5, 6)
    own = run(energies.residual_ar(network, MASK, 5, carry_over), drafts.clamp(max=4), x_t.clamp(max=4), log_p)
    with torch.no_grad():
        network.embedding.weight[MASK] = network.embedding.weight[5]
    mask = run(energies.residual_ar(network, MASK, MASK, carry_over), drafts.clamp(max=4), x_t.clamp(max=4), log_p)
    assert own.isfinite().all()
    torch.testing.assert_close(mask, own, rtol=0.0, atol=1e-12)


# ---- In a sampler


@forms
def test_a_sampler_weighs_by_it(carry_over):
    """Frequencies of a three-step sampler against enumeration; the laws of the two forms are 0.07 apart."""
    denoiser, count = OracleDenoiser(Lookup(MARGINALS), MASK, LENGTH), 20_000
    kernel = builders.importance(schedules.log_linear(), denoiser, with_bos(carry_over), num_particles=3)
    tokens = edlm.sample(builders.sampling(kernel, LENGTH, num_steps=3), count, seed=0)["tokens"]
    alphas = torch.linspace(0.0, 1.0, 4, dtype=torch.float64)
    distance = {
        form: total_variation(
            empirical_law(tokens, SYMBOLS), sampler_law(MARGINALS, alphas, ar_energy(JOINT, MARGINALS, form), sir(3))
        )
        for form in (False, True)
    }
    assert distance[carry_over] < 0.025
    assert distance[not carry_over] > 0.05


def test_the_law_of_the_drafts_is_what_the_energy_reads():
    """`log_p_candidates` of the proposal stage is what the oracle calls the proposal's log-probability."""
    x_t = STATES[[5, 40, 63]]
    drafts = every_draft(x_t)
    log_p = drawn_log_prob(MARGINALS, drafts, x_t)
    kept = agrees(drafts, x_t)
    torch.testing.assert_close(log_p.sum(-1)[kept], proposal_log_prob(MARGINALS, drafts, x_t)[kept])


# ---- Mistakes


def test_ids_outside_the_vocabulary_are_refused():
    network = small_network(vocab_size=6)
    for ids in ({"mask_id": 6}, {"mask_id": -1}, {"bos_id": 6}, {"pad_id": 6}):
        arguments = {"mask_id": MASK, "bos_id": 4, "pad_id": None} | ids
        ((name, value),) = ids.items()
        with pytest.raises(ValueError, match=f"{name} = {value} is outside the network's vocabulary of 6"):
            energies.residual_ar(network, carry_over=True, **arguments)


def test_a_bidirectional_network_is_refused():
    with pytest.raises(ValueError, match="causal"):
        energies.residual_ar(small_network(causal=False), MASK, 4, carry_over=True)
