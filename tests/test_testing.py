"""The laws that others may check are kept by our own parts, and a part that breaks one is told which."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from builders import SELECTIONS, randomise, tiny_denoiser, tiny_network
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor

from edlm import contracts, testing
from edlm.data import vocabulary
from edlm.models import chain_rule, energies
from edlm.nn.networks import EnergyNetwork
from edlm.process import particles, schedules
from edlm.samplers import execution, plans, selections
from edlm.samplers.planning import Seen

V, MASK, PAD = 6, 4, 5
LEARNED = energies.learned(
    randomise(EnergyNetwork(V, 8, hidden_size=16, num_layers=1, num_heads=2, conditioning_size=8), seed=0),
    schedules.log_linear(1e-3),
    PAD,
)
CAUSAL = tiny_network(vocab_size=V, causal=True, conditioning_size=0)
POSTERIOR = energies.residual_ar(CAUSAL, MASK, 0, carry_over=False, pad_id=PAD)
CARRY_OVER = energies.residual_ar(CAUSAL, MASK, None, carry_over=True)
ENERGIES = {
    "zero": energies.zero(),
    "learned": LEARNED,
    "posterior": POSTERIOR,
    "carry-over": CARRY_OVER,
    "scaled": energies.scaled(LEARNED, -2.0),
    "chain rule": chain_rule.energy(tiny_denoiser(0, MASK, vocab_size=V, num_layers=2)),
    "product": energies.product(LEARNED, energies.scaled(CARRY_OVER, 0.5), energies.zero()),
}


# ---- Our own parts


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize(("num_rows", "num_particles", "length"), [(3, 4, 8), (1, 1, 5), (2, 1, 1)])
def test_our_energies_keep_the_laws(name: str, num_rows: int, num_particles: int, length: int) -> None:
    testing.check_energy(ENERGIES[name], V, MASK, length, num_rows, num_particles)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENERGIES)
def test_our_energies_are_one_graph(name: str) -> None:
    testing.check_one_graph(ENERGIES[name], testing.drafts(V, MASK))


@pytest.mark.parametrize("schedule", [None, schedules.log_linear(1e-3)])
def test_our_denoisers_keep_the_laws(schedule: schedules.Schedule | None) -> None:
    for length in (8, 1):
        testing.check_denoiser(tiny_denoiser(schedule=schedule), length)


@pytest.mark.parametrize("name", SELECTIONS)
def test_our_selections_keep_the_laws(name: str) -> None:
    for num_particles in (1, 2, 5):
        testing.check_selection(SELECTIONS[name], num_particles)
    testing.check_one_graph(SELECTIONS[name], torch.randn(3, 4).double(), torch.rand(3, 4).double())


# ---- The inputs


@pytest.mark.parametrize(("vocab_size", "mask_id"), [(2, 0), (2, 1), (6, 3)])
def test_drafts_are_what_a_step_gives_an_energy(vocab_size: int, mask_id: int) -> None:
    made = testing.drafts(vocab_size, mask_id, length=7, num_rows=4, num_particles=3)
    candidates, x_t, log_p = (made[key] for key in (contracts.CANDIDATES, contracts.X_T, contracts.LOG_P_CANDIDATES))
    masked = x_t == mask_id
    assert candidates.shape == log_p.shape == (4, 3, 7)
    assert masked.any(1).all()
    assert masked[-1].all()
    assert not masked[0].all()
    assert torch.equal(made[contracts.POSITIONS], masked.flatten().nonzero().squeeze(1))
    assert (candidates != mask_id).all()
    assert ((candidates >= 0) & (candidates < vocab_size)).all()
    assert torch.equal(torch.where(masked.unsqueeze(1), x_t.unsqueeze(1), candidates), x_t.unsqueeze(1).expand(4, 3, 7))
    assert torch.equal(log_p < 0, masked.unsqueeze(1).expand(4, 3, 7))
    assert set(made.keys()) == set(testing.ENERGY_KEYS)


def test_a_mask_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="mask_id = 6 is outside the vocabulary of 6"):
        testing.drafts(6, 6)


# ---- Parts that break a law


def mean_token(candidates: Tensor) -> Tensor:
    return candidates.double().mean(-1)


def of(function, *keys: str) -> TensorDictModule:
    """An energy that is a function of candidates and of other keys."""
    return TensorDictModule(function, in_keys=[contracts.CANDIDATES, *keys], out_keys=[contracts.ENERGY])


def edits(candidates: Tensor) -> Tensor:
    return mean_token(candidates.add_(1))


class Counting:
    """An energy that remembers how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, candidates: Tensor) -> Tensor:
        self.calls += 1
        return mean_token(candidates) * self.calls


class Rewriting(TensorDictModule):
    """An energy that returns other candidates than it was given."""

    def forward(self, tensordict: TensorDict) -> TensorDict:
        out = super().forward(tensordict.copy())
        return out.set(contracts.CANDIDATES, out[contracts.CANDIDATES] * 0)


def laid_out_by_particle(candidates: Tensor) -> Tensor:
    return mean_token(candidates.transpose(0, 1).flatten(0, 1)).view(candidates.shape[:2])


BROKEN_ENERGIES = {
    "particle 0 alone has its energy among others": of(lambda x: mean_token(x) - mean_token(x).mean(1, keepdim=True)),
    "row 0 alone has its energy among others": of(lambda x: mean_token(x) - mean_token(x).mean(0)),
    "padded positions change no energy": of(lambda x, p: mean_token(x) + (p >= x[:, 0].numel()).sum(), "positions"),
    "finite or \\+inf, never NaN or -inf; rows 0, 1, 2": of(lambda x: -torch.inf * (mean_token(x) + 1)),
    "finite or \\+inf, never NaN or -inf; rows 1": of(
        lambda x: torch.where(torch.arange(len(x)).unsqueeze(1) == 1, torch.nan, mean_token(x))
    ),
    "energies are finite or \\+inf, never NaN or -inf; rows 0, 1, 2": of(  # the second candidate of each
        lambda x: torch.where(torch.arange(x.shape[1]) == 1, -torch.inf, mean_token(x))
    ),
    "floating-point numbers, not torch.int64": of(lambda x: x.sum(-1)),
    "shape \\(b, k\\) = \\(3, 4\\), not \\(3,\\)": of(lambda x: mean_token(x)[:, 0]),
    "the input 'candidates' is not edited": of(edits),
    "the same input gives the same energy": of(Counting()),
    "an energy reads .*, and not hidden": of(lambda x, h: mean_token(x), "hidden"),
    "writes the key 'energy'": TensorDictModule(mean_token, in_keys=["candidates"], out_keys=["score"]),
    "what comes back of 'candidates' is what was given": Rewriting(
        mean_token, in_keys=["candidates"], out_keys=["energy"]
    ),
    "particle 0 alone has its energy among others: .* at": of(laid_out_by_particle),
}


@pytest.mark.parametrize("law", BROKEN_ENERGIES)
def test_an_energy_that_breaks_a_law_is_told_which(law: str) -> None:
    with pytest.raises(AssertionError, match=f"law broken: .*{law}"):
        testing.check_energy(BROKEN_ENERGIES[law], V, MASK)


def test_an_energy_that_cannot_weigh_a_mask_is_told_so() -> None:
    energy = of(lambda x: torch.where((x == MASK).any(-1), torch.nan, mean_token(x)))
    with pytest.raises(AssertionError, match="never NaN or -inf"):
        testing.check_energy(energy, V, MASK)


def test_positions_of_other_rows_may_not_matter() -> None:
    """An energy that counts positions over the whole batch, and is right whenever all rows ask for all their masks."""

    def counts(x: Tensor, x_t: Tensor, positions: Tensor) -> Tensor:
        missing = (x_t == MASK).sum() - (positions < x_t.numel()).sum()
        return mean_token(x) + missing

    with pytest.raises(AssertionError, match="row 0 has the same energy among other rows"):
        testing.check_energy(of(counts, "x_t", "positions"), V, MASK)


def test_a_constant_is_checked_with_a_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = selections.Selection("imh", lambda log_w, u: (log_w.exp() > 0.1).long().argmax(-1))
    monkeypatch.setattr(selections, "IMH", broken)
    with pytest.raises(AssertionError, match="a constant per row changes no sample; rows"):
        testing.check_energy(of(mean_token), V, MASK)


def test_work_on_the_host_is_no_graph() -> None:
    letters = vocabulary.characters("abcde")
    energy = of(lambda x: torch.tensor([[len(set(text)) for text in letters.decode(row)] for row in x]).double())
    testing.check_energy(energy, V, MASK)
    with pytest.raises(AssertionError, match="law broken: it is one graph"):
        testing.check_one_graph(energy, testing.drafts(V, MASK))


def test_a_part_that_is_another_when_compiled_is_told_so() -> None:
    energy = of(lambda x: mean_token(x) + torch.compiler.is_compiling())
    with pytest.raises(AssertionError, match=r"compiled, energy is the same: .* at \(0, 0\)"):
        testing.check_one_graph(energy, testing.drafts(V, MASK))


class Broken(torch.nn.Module):
    """A denoiser with one thing wrong."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.right, self.fault = tiny_denoiser(), fault
        self.mask_id, self.vocab_size, self.max_length = 4, 5, 8

    def forward(self, tensordict: TensorDict) -> TensorDict:
        x_t = tensordict[contracts.X_T]
        if self.fault == "edits":
            x_t.clamp_(max=3)
        out = self.right(tensordict)
        if self.fault == "rows":
            out[contracts.HIDDEN] = out[contracts.HIDDEN] + out[contracts.HIDDEN].mean(0)
        if self.fault == "states":
            out[contracts.HIDDEN] = out[contracts.HIDDEN][1:]
        if self.fault == "fewer":
            out[contracts.HIDDEN] = out[contracts.HIDDEN] * (1 + (len(tensordict["positions"]) < (x_t == 4).sum()))
        if self.fault == "padding":
            out[contracts.HIDDEN] = out[contracts.HIDDEN] * (1 + (tensordict["positions"] == x_t.numel()).any())
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self.right.logits(hidden)
        changes = {
            "mask": lambda: logits.nan_to_num(neginf=-9.0),
            "nan": lambda: logits.index_fill(1, torch.tensor(1), torch.nan),
            "nothing": lambda: torch.full_like(logits, -torch.inf),
            "width": lambda: logits[:, 1:],
            "in place": lambda: (logits, hidden.zero_())[0],
        }
        return changes.get(self.fault, lambda: logits)()


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("edits", "the input 'x_t' is not edited"),
        ("rows", "row 0 alone has its law among others"),
        ("states", r"states are \(n, h\) with n = "),
        ("fewer", "row . has the same law among other rows|the same law if fewer are asked for"),
        ("padding", "padded positions change no other's law"),
        ("mask", "the mask is never given any probability"),
        ("nan", "finite or -inf"),
        ("nothing", "finite or -inf"),
        ("width", r"logits have shape \(n, v\)"),
        ("in place", "logits leave the states as they are"),
    ],
)
def test_a_denoiser_that_breaks_a_law_is_told_which(fault: str, law: str) -> None:
    testing.check_denoiser(Broken("none"))
    with pytest.raises(AssertionError, match=law):
        testing.check_denoiser(Broken(fault))


def test_a_denoiser_is_not_asked_for_more_than_it_was_built_for() -> None:
    with pytest.raises(AssertionError, match=r"length = 9 lies in 1\.\.max_length = 8"):
        testing.check_denoiser(tiny_denoiser(), length=9)


@pytest.mark.parametrize(
    ("selection", "law"),
    [
        (lambda w, u: (w > 4).long().argmax(-1), "a constant per row changes no choice; rows"),
        (lambda w, u: torch.zeros(len(w), dtype=torch.int64), "a particle of weight zero is never chosen; rows"),
        (lambda w, u: particles.sir(w, u.roll(1, 0)), "rows do not see each other; rows"),
        (lambda w, u: particles.greedy(w, u) * (w.shape[1] > 1) + (w.shape[1] == 1), r"lies in \[0, 1\)"),
        (lambda w, u: w.argmax(-1).int(), "the choice is int64"),
        (lambda w, u: w.argmax(-1, keepdim=True), "the choice is int64"),
        (lambda w, u: w.argmax(-1) + w.shape[1], r"lies in \[0, 4\)"),
        (lambda w, u: w.mul_(2).argmax(-1), "the log-weights are not edited"),
        (lambda w, u: w.argmax(-1) + 0 * u.zero_()[:, 0].long(), "the uniforms are not edited"),
    ],
)
def test_a_selection_that_breaks_a_law_is_told_which(selection, law: str) -> None:
    with pytest.raises(AssertionError, match=law):
        testing.check_selection(selection)


def test_one_graph_is_the_function() -> None:
    assert torch.equal(execution.one_graph(lambda x: x + 1)(torch.ones(2)), torch.full((2,), 2.0))
    with pytest.raises(Exception, match="Data-dependent branching"):
        execution.one_graph(lambda x: x + 1 if x.any() else x)(torch.ones(1))


def changing(rule: plans.Rule) -> plans.Rule:
    """A rule that says another thing the second time."""
    calls = iter(range(1000))

    def choose(seen: Seen, masked: Tensor) -> Tensor:
        return rule.choose(seen, masked) if next(calls) % 2 else plans.LeftToRight(1).choose(seen, masked)

    return SimpleNamespace(choose=choose)


def ruled(choose: Callable[[Seen, Tensor], Tensor]) -> plans.Rule:
    return SimpleNamespace(choose=choose)


@pytest.mark.parametrize("plan", [plans.EntropyBound(0.5), plans.Confidence(0.6), plans.Ranked(3), plans.LeftToRight()])
def test_rules_keep_their_laws(plan: plans.Rule) -> None:
    for length, num_rows in ((1, 3), (8, 32)):
        testing.check_rule(plan, length, num_rows)


@pytest.mark.parametrize(
    ("plan", "law"),
    [
        (ruled(lambda _, masked: masked | True), "only masks are chosen; rows"),
        (
            ruled(lambda seen, masked: masked & (seen.confidence > 0.9)),
            "one at least is chosen of every row with masks",
        ),
        (changing(plans.Ranked(2)), "the same input gives the same choice; rows"),
        (
            ruled(lambda seen, masked: masked & (seen.entropy <= seen.entropy.median())),
            "rows do not see each other|one at",
        ),
        (
            ruled(lambda seen, masked: masked & (masked.roll(1, 0) | (masked.cumsum(1) == 1))),
            "rows do not see each other",
        ),
        (
            ruled(lambda seen, masked: masked & ((masked.cumsum(1) == 1) | (seen.margin.sum(1, True) > 3.0))),
            "what is given changes no choice; rows",
        ),
        (ruled(lambda _, masked: masked.long()), "the choice is bool"),
        (ruled(lambda _, masked: masked[:1]), "the choice is bool"),
        (ruled(lambda seen, masked: masked & (seen.entropy.zero_() == 0.0)), "the entropy are not edited"),
        (ruled(lambda _, masked: masked.zero_()), "the masks are not edited"),
    ],
)
def test_a_rule_that_breaks_a_law_is_told_which(plan: plans.Rule, law: str) -> None:
    with pytest.raises(AssertionError, match=law):
        testing.check_rule(plan)
