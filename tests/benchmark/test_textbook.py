"""The textbook samplers, with which ours are compared, have the law they are said to have.

A law is judged by one chi-square test at a fixed seed; all of them together raise a false alarm with probability 1e-3
at most, over seeds (Bonferroni over `TESTS`). The same counts must be rejected as draws of a law that is wrong.
"""

import pytest
import torch
from oracles import (
    EnergyFn,
    Lookup,
    all_masked_states,
    ar_energy,
    ar_log_prob,
    index_of,
    random_joint,
    random_marginals,
    sampler_law,
    sir,
    zero_energy,
)
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from edlm.benchmark import textbook, textbook_training

TESTS = 12  # at least as many as this file makes
FALSE_ALARM = 1e-3 / TESTS
SAMPLES = 100_000
SYMBOLS, LENGTH = 2, 3
MASK, BOS = SYMBOLS, SYMBOLS + 1
JOINT = random_joint(0, SYMBOLS, LENGTH, 1.5)
MARGINALS = random_marginals(1, SYMBOLS, LENGTH)


class TableNetwork(nn.Module):
    """A network whose logits are a table's entries for the whole state; it remembers what it was asked."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.lookup, self.head, self.asked = Lookup(table), nn.Identity(), []

    def forward(self, tokens: Tensor, sigma: Tensor | None = None) -> Tensor:
        self.asked.append(tokens.clone())
        return self.lookup(tokens)


class ConditionalNetwork(nn.Module):
    """A causal network that reads `[bos, x_0, ..., x_{l-2}]` and gives `log p(x_i | x_<i)`, and the mask 5 nats."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        assert (tokens[:, 0] == BOS).all()
        base, place = SYMBOLS + 2, (SYMBOLS + 2) ** torch.arange(tokens.shape[1])
        codes, of = (tokens * place).sum(1).unique(return_inverse=True)  # of many rows few differ
        return self.of_each(codes.unsqueeze(1) // place % base)[of]

    def of_each(self, tokens: Tensor) -> Tensor:
        """The same of rows that differ."""
        prefix = torch.cat([tokens[:, 1:], tokens.new_zeros(len(tokens), 1)], dim=1)
        logits = torch.full((*tokens.shape, SYMBOLS + 2), -torch.inf, dtype=torch.float64)
        for i in range(LENGTH):
            for symbol in range(SYMBOLS):
                guess = torch.cat([prefix[:, :i], torch.full_like(prefix[:, i:], symbol)], dim=1)
                logits[:, i, symbol] = ar_log_prob(JOINT, guess)[:, i]
        logits[..., MASK] = 5.0
        return logits


def with_arbitrary_visible_logits() -> Tensor:
    """The denoiser's table with numbers that mean nothing where SUBS must not look: at the mask, at visible tokens."""
    states = all_masked_states(SYMBOLS, LENGTH)
    table = MARGINALS.flatten(0, LENGTH - 1).clone()
    table[states != MASK] = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    table[..., MASK] = 4.0
    return table.view_as(MARGINALS)


def p_value(tokens: Tensor, law: Tensor) -> float:
    counts = torch.bincount(index_of(tokens, SYMBOLS), minlength=len(law))
    assert (law * len(tokens)).min() > 5
    return float(stats.chisquare(counts, law * len(tokens)).pvalue)


def judge(tokens: Tensor, law: Tensor, *wrong: Tensor) -> None:
    """Accept the law; reject the wrong ones, and the law with one percent moved from one outcome to another."""
    most = law.argsort(descending=True)[:2]
    moved = law.scatter_add(0, most, torch.tensor([-0.01, 0.01], dtype=law.dtype))
    assert p_value(tokens, law) > FALSE_ALARM
    assert all(p_value(tokens, twin) < FALSE_ALARM for twin in (moved, *wrong))


def enumerated(num_steps: int, energy: EnergyFn = zero_energy, k: int = 1) -> Tensor:
    return sampler_law(MARGINALS, torch.linspace(0, 1, num_steps + 1, dtype=torch.float64), energy, sir(k))


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_textbook_plain_sampler_has_the_enumerated_law(num_steps: int) -> None:
    network, generator = TableNetwork(with_arbitrary_visible_logits()), torch.Generator().manual_seed(2024)
    tokens = textbook.ancestral(network, MASK, (SAMPLES, LENGTH), num_steps, generator)
    judge(tokens, enumerated(num_steps), enumerated(num_steps + 1))


@pytest.mark.parametrize("carry_over", [False, True])
@pytest.mark.parametrize(
    ("num_steps", "k"), [pytest.param(1, 2, marks=pytest.mark.slow), (3, 2), pytest.param(2, 3, marks=pytest.mark.slow)]
)
def test_the_textbook_energy_sampler_has_the_enumerated_law(num_steps: int, k: int, carry_over: bool) -> None:
    network, generator = TableNetwork(with_arbitrary_visible_logits()), torch.Generator().manual_seed(2024)
    energy = textbook.residual_ar(ConditionalNetwork(), MASK, BOS, carry_over)
    tokens = textbook.importance(network, energy, MASK, (SAMPLES, LENGTH), num_steps, k, generator)
    right = ar_energy(JOINT, MARGINALS, carry_over)
    flipped = enumerated(num_steps, lambda candidates, x_t: -right(candidates, x_t), k)
    judge(tokens, enumerated(num_steps, right, k), flipped, enumerated(num_steps))


def test_both_forms_of_the_textbook_energy_differ() -> None:
    """Else the test above could not tell that the form is obeyed."""
    forms = [enumerated(3, ar_energy(JOINT, MARGINALS, carry_over), 2) for carry_over in (False, True)]
    assert (forms[0] - forms[1]).abs().sum() > 0.02


def test_the_textbook_cache_asks_the_network_once_per_state() -> None:
    for sampler in (textbook.ancestral, textbook.importance):
        network, generator = TableNetwork(MARGINALS), torch.Generator().manual_seed(0)
        energy = textbook.residual_ar(ConditionalNetwork(), MASK, BOS, carry_over=False)
        particles = () if sampler is textbook.ancestral else (2,)
        arguments = (network, MASK) if sampler is textbook.ancestral else (network, energy, MASK)
        tokens = sampler(*arguments, (1, LENGTH), 50, *particles, generator)
        masks = [int((state == MASK).sum()) for state in network.asked]
        assert masks[0] == LENGTH
        assert masks == sorted(set(masks), reverse=True)
        assert not (tokens == MASK).any()


def test_a_stated_number_of_textbook_steps_is_run() -> None:
    network = TableNetwork(MARGINALS)
    for only in (1, 4, None):
        network.asked.clear()
        tokens = textbook.ancestral(network, MASK, (64, LENGTH), 8, torch.Generator().manual_seed(0), only)
        assert len(network.asked) == (only or 8)  # of 64 rows one changes at every step
        assert bool((tokens == MASK).any()) == (only is not None)


def test_so_is_one_of_the_sampler_with_an_energy() -> None:
    network, energy = TableNetwork(MARGINALS), textbook.residual_ar(ConditionalNetwork(), MASK, BOS, carry_over=False)
    for only in (1, 3):
        network.asked.clear()
        given = (network, energy, MASK, (64, LENGTH), 8, 2, torch.Generator().manual_seed(0), only)
        assert (textbook.importance(*given) == MASK).any()
        assert len(network.asked) == only


def test_the_steps_of_a_grid_end_without_masks() -> None:
    assert list(textbook._steps(4, None)) == [(0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)]
    assert list(textbook._steps(4, 2)) == [(0.0, 0.25), (0.25, 0.5)]


# ---- Training


def test_textbook_drafts_have_the_law_of_the_denoiser() -> None:
    network, generator = TableNetwork(with_arbitrary_visible_logits()), torch.Generator().manual_seed(2024)
    state = torch.full((SAMPLES, LENGTH), MASK)
    judge(textbook_training.drafts_of(network, state, MASK, generator), enumerated(1), enumerated(2))


def test_textbook_times_are_stratified_and_mask_that_share() -> None:
    x_t, t = textbook_training.corrupt(torch.zeros(1000, 200).long(), 1, torch.Generator().manual_seed(0))
    assert torch.equal((t * 1000).floor().clamp(max=999), torch.arange(1000.0)) or (t.diff() > -1e-3).all()
    assert abs(float(((x_t == 1).double().mean(-1) - t).mean())) < 0.005


def test_textbook_times_are_those_of_its_two_draws() -> None:
    """One uniform for each row moves it within its stratum, and one for each token masks it."""
    x_0, again = torch.zeros(4, 6).long(), torch.Generator().manual_seed(5)
    x_t, t = textbook_training.corrupt(x_0, 1, torch.Generator().manual_seed(5))
    within, masks = torch.rand(4, generator=again), torch.rand(4, 6, generator=again)
    wanted = [1e-3 + (1.0 - 1e-3) * (row + float(within[row])) / 4 for row in range(4)]
    assert t.tolist() == pytest.approx(wanted)
    assert torch.equal(x_t == 1, masks < t.unsqueeze(1))


def test_a_token_that_is_there_stays_in_the_law_of_training() -> None:
    x_t, logits = torch.tensor([[0, MASK, 1]]), torch.randn(1, 3, MASK + 1, generator=torch.Generator().manual_seed(0))
    law = textbook_training.subs(logits.clone(), x_t, MASK).exp()
    assert torch.equal(law[0, [0, 2]], F.one_hot(x_t[0, [0, 2]], MASK + 1).float())
    torch.testing.assert_close(law[0, 1, :MASK], logits[0, 1, :MASK].softmax(-1))
    assert law[0, 1, MASK] == 0.0
