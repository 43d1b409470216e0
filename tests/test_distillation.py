"""An energy of transitions from the denoiser's chain rule: its terms are exact, and it learns the exact energy."""

from collections.abc import Callable

import pytest
import torch
from builders import randomise, tiny_denoiser
from tensordict import TensorDict
from torch import Tensor, nn

from edlm import contracts, distillation, energies, networks, noise, schedules, sources, transition
from edlm.contracts import Denoiser
from edlm.noise import Stream

SYMBOLS, LENGTH = 3, 5
SOURCE = sources.random_markov(0, SYMBOLS, 2.5)
DENOISER = sources.denoiser(SOURCE, LENGTH)
LINEAR = schedules.log_linear()
BEFORE = (contracts.X_T, contracts.T, contracts.X_S, contracts.POSITIONS)
SIZES = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "conditioning_size": 0}


def keyed(n: int, step: int = 0, seed: int = 0) -> TensorDict:
    row = torch.arange(n)
    keys = {contracts.SEED: seed, contracts.STEP: step, contracts.NUM_ROWS: n}
    x_0 = sources.texts(SOURCE, n, LENGTH, seed=7, first_row=n * step)
    return TensorDict(
        {contracts.X_0: x_0, contracts.ROW: row, **{name: torch.tensor(value) for name, value in keys.items()}}
    )


def exact(candidates: Tensor, x_t: Tensor) -> Tensor:
    """The exact energy of transitions (b, k), from marginals and conditionals."""
    positions = (x_t == SYMBOLS).flatten().nonzero().squeeze(-1)
    hidden = DENOISER(TensorDict({contracts.X_T: x_t, contracts.POSITIONS: positions}))[contracts.HIDDEN]
    log_p = torch.zeros(x_t.numel(), SYMBOLS + 1, dtype=torch.float64)
    log_p = log_p.index_copy(0, positions, DENOISER.logits(hidden).log_softmax(-1)).view(*x_t.shape, -1)
    own = log_p.unsqueeze(1).expand(*candidates.shape, -1).gather(-1, candidates.unsqueeze(-1)).squeeze(-1)
    own = torch.where(candidates != x_t.unsqueeze(1), own, 0.0).sum(-1)
    return own - sources.log_conditional(SOURCE, candidates, x_t)


def stages(network: nn.Module, **changes: object) -> nn.Module:
    return distillation.chain_rule(DENOISER, network, LINEAR, (1, 4), **{"num_draws": 4, **changes})


def picking_at(share: float, drawn: Callable[..., Tensor] = noise.uniforms) -> Callable[..., Tensor]:
    """Uniforms as they are, but for those that pick a position: all at this share of the new ones."""

    def uniforms(
        seed: Tensor, row: Tensor, step: Tensor, stream: Stream, position: Tensor | int = 0, count: int = 1
    ) -> Tensor:
        found = drawn(seed, row, step, stream, position, count)
        return torch.full_like(found, share) if stream == Stream.SELECTION else found

    return uniforms


def test_padding_is_neither_revealed_nor_read() -> None:
    """Symbol 0 stands for padding; the network's scalars are those of texts in which it is none of the tokens."""
    network, inputs = randomise(networks.EnergyNetwork(SYMBOLS + 1, LENGTH, **SIZES), 0), keyed(32)
    inputs[contracts.X_0][:, 0] = 1
    out = stages(network, pad_id=0)(inputs)
    padding, x_t, candidates = inputs[contracts.X_0] == 0, out[contracts.X_T], out[contracts.CANDIDATES]
    assert torch.equal(x_t[padding], inputs[contracts.X_0][padding])
    everywhere = padding.unsqueeze(1).expand_as(candidates)
    assert (candidates[everywhere] == 0).all()
    assert not everywhere.gather(-1, out["picked"].unsqueeze(-1)).any()
    for draw in range(5):
        given = x_t, candidates[:, draw], None
        expected, careless = (
            network.per_position(*given, valid).gather(-1, out["picked"][:, draw : draw + 1]).squeeze(-1)
            for valid in (x_t != 0, None)
        )
        torch.testing.assert_close(out["predicted"][:, draw], expected)
        assert not torch.allclose(expected, careless)


def test_the_terms_of_all_positions_add_up_to_the_exact_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every position of S is picked in turn, and no other; its terms are those of one order, so they add up."""
    network = networks.EnergyNetwork(SYMBOLS + 1, LENGTH, **SIZES)
    pipeline = stages(network)
    state = pipeline.module["corrupt"](keyed(32))
    term = pipeline.module["term"]
    found = term(state)
    terms = torch.full((32, 5, LENGTH), torch.nan, dtype=torch.float64)
    module = term.stage.module
    for share in torch.linspace(0.01, 0.99, 24).tolist():
        monkeypatch.setattr(distillation.noise, "uniforms", picking_at(share))
        keys = (*BEFORE, contracts.SEED, contracts.ROW, contracts.STEP)
        candidates, picked, target = module(*(state[key] for key in keys))
        assert torch.equal(candidates, found[contracts.CANDIDATES]), "the draws do not depend on what is picked"
        terms = terms.scatter(-1, picked.unsqueeze(-1), target.unsqueeze(-1))
    assert torch.equal(candidates[:, 0], state[contracts.X_S]), "the text's own tokens come first"
    new = candidates != state[contracts.X_T].unsqueeze(1)
    assert torch.equal(~terms.isnan(), new), "every new position is picked, and no other"
    torch.testing.assert_close(terms.nansum(-1), exact(candidates, state[contracts.X_T]), rtol=1e-9, atol=1e-9)


def test_the_chain_rule_of_an_exact_denoiser_is_the_exact_energy() -> None:
    """Of the text's tokens and of draws, with different numbers of new tokens in a batch."""
    state = transition.contrastive(DENOISER, energies.zero(), LINEAR, (1, 4), 6)(keyed(64))
    candidates, x_t = state[contracts.CANDIDATES], state[contracts.X_T]
    assert (candidates != x_t.unsqueeze(1)).sum(-1).unique().numel() > 2
    law = (sources.state_law(SOURCE, x_t) @ SOURCE.emission).log().unsqueeze(1).expand(*candidates.shape, -1)
    log_p = law.gather(-1, candidates.clamp(max=SYMBOLS - 1).unsqueeze(-1)).squeeze(-1)
    state[contracts.LOG_P_CANDIDATES] = torch.where(candidates != x_t.unsqueeze(1), log_p, 0.0)
    found = distillation.chain_rule_energy(DENOISER)(state)[contracts.ENERGY]
    torch.testing.assert_close(found, exact(candidates, x_t), rtol=1e-9, atol=1e-9)


def test_a_term_is_asked_for_where_its_own_token_is_still_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exact denoiser would not mind being shown it, a network would give it back."""
    pipeline = stages(networks.EnergyNetwork(SYMBOLS + 1, LENGTH, **SIZES))
    asked, hidden = [], distillation._hidden

    def note(denoiser: Denoiser, x_t: Tensor, t: Tensor, positions: Tensor) -> Tensor:
        asked.append(x_t.flatten()[positions])
        return hidden(denoiser, x_t, t, positions)

    monkeypatch.setattr(distillation, "_hidden", note)
    pipeline(keyed(32))
    assert len(asked) == 2
    assert all((tokens == SYMBOLS).all() for tokens in asked)


def test_the_energy_of_a_denoiser_asks_for_tokens_that_are_still_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """And has read those of S left of them: each new token is asked for once, the first with nothing new before it."""
    asked, hidden = [], distillation._hidden

    def note(denoiser: Denoiser, x_t: Tensor, t: Tensor, positions: Tensor) -> Tensor:
        asked.append((x_t.flatten()[positions], (x_t != SYMBOLS).sum(-1)))
        return hidden(denoiser, x_t, t, positions)

    monkeypatch.setattr(distillation, "_hidden", note)
    x_t = torch.full((2, LENGTH), SYMBOLS)
    candidates = torch.zeros(2, 3, LENGTH, dtype=torch.long)
    candidates[1, :, 2:] = SYMBOLS  # two new tokens beside five
    log_p = torch.zeros(2, 3, LENGTH, dtype=torch.float64)
    state = {contracts.CANDIDATES: candidates, contracts.X_T: x_t, contracts.LOG_P_CANDIDATES: log_p}
    distillation.chain_rule_energy(DENOISER)(TensorDict({**state, contracts.T: torch.ones(2)}))
    assert all((tokens == SYMBOLS).all() for tokens, _ in asked)
    assert [visible.tolist() for _, visible in asked] == [[0] * 6, [1] * 6, [2] * 3, [3] * 3, [4] * 3]


def test_the_loss_is_the_squared_error_at_what_was_picked() -> None:
    network = networks.EnergyNetwork(SYMBOLS + 1, LENGTH, **SIZES)
    out = stages(network)(keyed(16))
    torch.testing.assert_close(out[contracts.LOSS].double(), out["target"].square().mean(-1), rtol=1e-5, atol=1e-6)
    out[contracts.LOSS].sum().backward()
    assert network.scalar.weight.grad is not None
    assert float(network.scalar.weight.grad.abs().sum()) > 0.0


def test_a_network_that_is_told_the_time_learns_with_it() -> None:
    """What it is told is sigma(t), of every candidate that of its row, as the energy of the sampler tells it."""
    sizes = {**SIZES, "conditioning_size": 8}
    network = randomise(networks.EnergyNetwork(SYMBOLS + 1, LENGTH, **sizes), 0)
    schedule = schedules.log_linear(1e-3)
    out = distillation.chain_rule(DENOISER, network, schedule, (1, 4), told=schedule)(keyed(16))
    sigma = schedules.sigma(schedule, out[contracts.T])
    for number in range(5):
        scalars = network.per_position(out[contracts.X_T], out[contracts.CANDIDATES][:, number], sigma)
        own = scalars.gather(-1, out["picked"][:, number : number + 1]).squeeze(-1)
        torch.testing.assert_close(out["predicted"][:, number], own)
    untold = distillation.chain_rule(DENOISER, network, schedule, (1, 4))(keyed(16))
    assert not torch.allclose(untold["predicted"], out["predicted"])


def test_the_denoiser_is_frozen_and_noise_is_keyed() -> None:
    """A network as denoiser gets no gradient; a part of a batch has the losses that it has in the whole."""
    denoiser = tiny_denoiser(0, SYMBOLS, vocab_size=SYMBOLS + 1, max_length=LENGTH, dropout=0.5)
    network = networks.EnergyNetwork(SYMBOLS + 1, LENGTH, **SIZES)
    pipeline = distillation.chain_rule(denoiser, network, LINEAR, (1, 4)).train()
    whole = keyed(8)
    loss = pipeline(whole)[contracts.LOSS]
    loss.sum().backward()
    assert all(parameter.grad is None for parameter in denoiser.parameters())
    part = TensorDict({key: value[2:5] if value.ndim else value for key, value in whole.items()})
    torch.testing.assert_close(pipeline(part)[contracts.LOSS], loss[2:5], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="num_draws = 0 must be at least 1"):
        stages(network, num_draws=0)


def test_a_row_of_padding_alone_costs_nothing() -> None:
    network = networks.EnergyNetwork(SYMBOLS + 1, LENGTH, **SIZES)
    torch.nn.init.normal_(network.scalar.weight)
    rows = keyed(4)
    rows[contracts.X_0] = rows[contracts.X_0].clamp(min=1)
    rows[contracts.X_0][1] = 0
    loss = distillation.chain_rule(DENOISER, network, LINEAR, (1, 4), pad_id=0)(rows)[contracts.LOSS]
    assert (loss == 0.0).tolist() == [False, True, False, False]


@pytest.mark.slow
def test_what_is_learned_is_the_exact_energy() -> None:
    """200 steps of 64 texts; on 400 fresh pairs a slope of 1 within 0.2 and a correlation above 0.9."""
    torch.manual_seed(0)
    network = networks.EnergyNetwork(SYMBOLS + 1, LENGTH, **SIZES)
    pipeline = stages(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for step in range(200):
        optimizer.zero_grad()
        pipeline(keyed(64, step))[contracts.LOSS].mean().backward()
        optimizer.step()
    energy = energies.learned_transition(network.eval())
    state = transition.contrastive(DENOISER, energy, LINEAR, (2, 2), 8)(keyed(400, 10**6, seed=1))
    candidates, x_t = state[contracts.CANDIDATES][:, 1:], state[contracts.X_T]
    wanted, found = exact(candidates, x_t), state[contracts.ENERGY][:, 1:].detach().double()
    a, b = (value - value.mean(1, keepdim=True) for value in (wanted, found))
    assert abs(float((a * b).sum() / (a * a).sum()) - 1.0) < 0.2
    assert float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) > 0.9
