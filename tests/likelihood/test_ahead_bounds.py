"""The likelihood of texts that a denoiser drafts and an AR model puts right: that of the AR model."""

import pytest
import torch
from drafting import LENGTH, MASK, SEQUENCES, ar_network, close, log_prob, sampler
from tensordict import TensorDict

from edlm import contracts
from edlm.likelihood import bounds
from edlm.models import energies
from edlm.samplers import plans


@pytest.mark.parametrize("plan", [plans.Grid(1), plans.LeftToRight(2)], ids=str)
def test_its_bound_is_the_likelihood_of_the_ar_model(plan) -> None:
    found = bounds.of_sampler(sampler(plan=plan), SEQUENCES, torch.tensor(0), torch.arange(len(SEQUENCES)))
    close(LENGTH * found.nats, -log_prob(SEQUENCES).sum(-1))


def test_a_prompt_is_given_to_its_bound() -> None:
    scored = torch.tensor([False, True, False, True]).expand_as(SEQUENCES)
    keys = SEQUENCES, torch.tensor(0), torch.arange(len(SEQUENCES))
    found = bounds.of_sampler(sampler(), *keys, scored=scored, num_completions=3)  # which are of drafts alone
    close(2 * found.nats, -log_prob(SEQUENCES)[:, [1, 3]].sum(-1))


@pytest.mark.parametrize("plan", [plans.Grid(2), plans.TokensPerPass(1)], ids=str)
def test_where_masks_stand_to_the_left_it_has_no_bound(plan) -> None:
    made = sampler(plan=plan)
    assert "masks stand left of what a pass reveals" in bounds.missing(made)
    with pytest.raises(ValueError, match="take one step, or left_to_right"):
        bounds.of_sampler(made, SEQUENCES, torch.tensor(0), torch.arange(len(SEQUENCES)))


def test_its_energy_is_that_of_drafts_carried_over_and_of_what_begins_at_the_first_mask() -> None:
    network, x_t = ar_network(), torch.tensor([[1, MASK, MASK, MASK]])
    drafts = SEQUENCES[SEQUENCES[:, 0] == 1].unsqueeze(0)
    log_p = torch.where(x_t == MASK, -1.0, 0.0).unsqueeze(1).expand_as(drafts).double()
    state = TensorDict({contracts.CANDIDATES: drafts, contracts.X_T: x_t, contracts.LOG_P_CANDIDATES: log_p})
    state[contracts.POSITIONS] = torch.tensor([1, 2, 3])
    own = energies.ordered_ar(network, MASK, MASK)
    close(own(state)[contracts.ENERGY], energies.residual_ar(network, MASK, MASK, True)(state)[contracts.ENERGY])
    for places, finite in (([1, 2], True), ([2], False)):
        some = torch.where(torch.tensor([i in (0, *places) for i in range(LENGTH)]), drafts, MASK)
        found = own(state.clone().update({contracts.CANDIDATES: some, contracts.POSITIONS: torch.tensor(places)}))
        assert bool(found[contracts.ENERGY].isfinite().all()) == finite
        if finite:
            close(found[contracts.ENERGY][0], -2.0 - log_prob(drafts[0])[:, places].sum(-1))
