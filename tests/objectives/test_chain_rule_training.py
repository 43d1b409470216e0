"""What a denoiser is trained by to be good in order too: its two bounds, and what they are worth."""

import math

import builders
import pytest
import torch
from revealing import LENGTH, MASK, Step, denoiser, sharp, state_of
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.likelihood import hidden_markov
from edlm.models import chain_rule, denoisers, energies
from edlm.nn import networks
from edlm.objectives import chain_rule as chain_rule_objectives
from edlm.objectives import denoising, transition
from edlm.process import schedules

LINEAR, TOLD = schedules.log_linear(), schedules.log_linear(1e-3)


def keyed(x_0: Tensor, seed: int = 0, step: int = 0) -> TensorDict:
    keys = {contracts.SEED: seed, contracts.STEP: step, contracts.NUM_ROWS: len(x_0)}
    row = torch.arange(len(x_0))
    return TensorDict({contracts.X_0: x_0, contracts.ROW: row, **{k: torch.tensor(v) for k, v in keys.items()}})


@pytest.mark.parametrize("pad_id", [None, 0])
@pytest.mark.parametrize("schedule", [None, TOLD])
def test_the_loss_is_the_parallel_law_of_the_masks_and_the_one_in_order_of_what_a_step_reveals(
    schedule: schedules.Schedule | None, pad_id: int | None
) -> None:
    """Row by row, by the energy itself; a row's padding is neither masked nor counted."""
    own = denoiser(schedule=schedule)
    x_0 = torch.randint(1, MASK, (40, LENGTH), generator=torch.Generator().manual_seed(1))
    if pad_id is not None:
        x_0[:20, 5:] = pad_id
    out = chain_rule_objectives.denoising(own, schedule or LINEAR, (1, 4), pad_id)(keyed(x_0))
    x_t, x_s, tokens = out[contracts.X_T], out[contracts.X_S], (x_0 != pad_id).sum(1) if pad_id == 0 else LENGTH
    assert torch.equal(x_t[x_0 == pad_id], x_0[x_0 == pad_id])
    step = Step(0)
    step.x_t, step.t, step.new = x_t, out[contracts.T], x_t == MASK
    step.positions, step.candidates = step.new.flatten().nonzero().squeeze(-1), x_0.unsqueeze(1)
    of_masks = step.state(own)[contracts.LOG_P_CANDIDATES].squeeze(1)
    step.new = x_t != x_s
    step.positions, step.candidates = step.new.flatten().nonzero().squeeze(-1), x_s.unsqueeze(1)
    state = step.state(own)
    in_order = state[contracts.LOG_P_CANDIDATES].sum(-1) - chain_rule.energy(own)(state)[contracts.ENERGY]
    wanted = of_masks.sum(1) / (x_t == MASK).sum(1) + in_order.squeeze(1) / step.new.sum(1)
    torch.testing.assert_close(out[contracts.LOSS], -tokens * wanted, rtol=0.0, atol=1e-11)


def test_its_first_part_is_the_t_step_nelbo_in_the_mean() -> None:
    """Of one text, 6000 draws of each; wrong with probability 1e-6. The untrained second part is known: l ln v."""
    own, n, num_steps = sharp(2), 6000, 2
    x_0, rows = torch.tensor([[0, 2, 1]]).expand(n, -1), torch.arange(n)
    with torch.no_grad():
        out = chain_rule_objectives.denoising(own, LINEAR, (num_steps, num_steps))(keyed(x_0))
    masked = (out[contracts.X_T] == 3).sum(1)
    ours = -3 * out[contracts.LOG_PROB].sum(1) / masked
    grid = schedules.uniform_grid(num_steps)
    theirs = 3 * builders.plain_bound(own, LINEAR, grid, x_0, torch.tensor(9), rows).nats
    error = math.sqrt(float(ours.var() + theirs.var()) / n)
    assert abs(float(ours.mean() - theirs.mean())) < 4.9 * error < 0.2


def test_every_weight_of_the_network_is_trained() -> None:
    net = networks.Transformer(5, LENGTH, hidden_size=16, num_layers=2, num_heads=2)
    pipeline = chain_rule_objectives.denoising(denoisers.subs(net, MASK), LINEAR, (1, 4))
    loss = pipeline(keyed(torch.randint(0, MASK, (16, LENGTH))))[contracts.LOSS]
    wanted = torch.full((16,), 2 * LENGTH * math.log(MASK), dtype=torch.float64)
    torch.testing.assert_close(loss.double(), wanted, rtol=0.0, atol=1e-4)
    loss.sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())
    with pytest.raises(ValueError, match=r"num_steps = \(3, 2\) must be the fewest"):
        chain_rule_objectives.denoising(denoisers.subs(net, MASK), LINEAR, (3, 2))


@pytest.mark.slow
def test_trained_for_it_a_denoiser_is_nearer_to_its_own_chain_rule() -> None:
    """On a Markov source, two layers, 250 steps of 64 texts by either loss: nats from a pass per token, squared."""
    length, far = 8, {}
    source = hidden_markov.random_markov(1, 4, 2.0)
    for name in ("mdlm", "chain_rule"):
        torch.manual_seed(0)
        net = networks.Transformer(5, length, hidden_size=32, num_layers=2, num_heads=2, conditioning_size=0)
        own = denoisers.subs(net, 4)
        pipeline = (
            denoising.denoising(own, LINEAR)
            if name == "mdlm"
            else chain_rule_objectives.denoising(own, LINEAR, (1, length))
        )
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, 250, pct_start=0.15)
        for step in range(250):
            optimizer.zero_grad()
            texts = hidden_markov.texts(source, 64, length, seed=7, first_row=64 * step)
            pipeline(keyed(texts, step=step))[contracts.LOSS].mean().backward()
            optimizer.step()
            rate.step()
        net.eval()
        with torch.no_grad():
            held_out = keyed(hidden_markov.texts(source, 300, length, seed=5), seed=1)
            drawn = transition.contrastive(own, energies.zero(), LINEAR, (2, 2), 3)(held_out)
            state = state_of(own, drawn[contracts.X_T], drawn[contracts.T], drawn[contracts.CANDIDATES])
            one, many = (build(own)(state)[contracts.ENERGY] for build in (chain_rule.energy, chain_rule.exact_energy))
        far[name] = float((one - many).square().mean())
    assert far["chain_rule"] < 0.7 * far["mdlm"]
