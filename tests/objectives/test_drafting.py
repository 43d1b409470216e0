"""What a causal network is trained by to draft its own next tokens: its exact likelihood, and its masks beside it."""

import pytest
import torch
from torch import Tensor

from edlm import contracts
from edlm.models import autoregressive
from edlm.nn import drafting as masks
from edlm.nn.networks import Transformer
from edlm.objectives import batches, drafting

BOS = MASK = 5
PAD = 4


def network() -> Transformer:
    torch.manual_seed(2)
    made = Transformer(6, 8, hidden_size=16, num_layers=1, num_heads=2, conditioning_size=0, causal=True)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made.double()


def texts(b: int = 6, padded: bool = False) -> Tensor:
    x_0 = torch.randint(0, 4, (b, 8), generator=torch.Generator().manual_seed(3))
    if padded:
        x_0[::2, 6:] = PAD
    return x_0


def by_masks(made: Transformer, text: Tensor, ahead: int, offset: int) -> Tensor:
    """`log p(x_i | x_<s(i))` of one text, by the states of the masks alone: (l,), zero for the first token."""
    read = torch.cat([torch.tensor([BOS]), text[:-1]])
    _, drafted = masks.beside_masks(made, read[None], MASK, ahead, torch.tensor(offset))
    logits = made.head(drafted[0])
    logits[:, MASK] = -torch.inf
    found = logits.log_softmax(-1).gather(1, text[:, None])[:, 0]
    return torch.cat([torch.zeros(1), found[1:]])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("ahead", "every"), [(1, 1), (3, 1), (3, 2), (8, 4)])
def test_the_loss_is_the_exact_likelihood_and_what_masks_predict_in_some_rows(
    ahead: int, every: int, padded: bool
) -> None:
    made, x_0, offsets = network(), texts(padded=padded), set()
    wanted = [
        torch.stack([by_masks(made, text, ahead, offset) * (row % every == 0) for row, text in enumerate(x_0)])
        for offset in range(ahead)
    ]
    for step in range(12):
        batch = batches.training_batch(x_0, 7, torch.arange(6), step, 6)
        out = drafting.next_token(made, MASK, BOS, ahead, every, PAD if padded else None)(batch)
        counted = (x_0 != PAD) if padded else torch.ones_like(x_0, dtype=torch.bool)
        exact = torch.where(counted, autoregressive.ar_log_prob(made, x_0, MASK, BOS), 0.0)
        torch.testing.assert_close(out[contracts.LOG_PROB], exact)
        drafted = out[contracts.LOG_PROB_DRAFTED]
        same = [offset for offset in range(ahead) if torch.allclose(drafted, torch.where(counted, wanted[offset], 0.0))]
        assert len(same) >= 1, "some offset gives what was drafted"
        offsets.update(same)
        torch.testing.assert_close(out[contracts.LOSS], -exact.sum(1) - drafted.sum(1))
    assert offsets == set(range(ahead)) or ahead == 8, "every offset is drawn"
    assert len(offsets) >= min(ahead, 4)


def test_the_parts_of_a_batch_have_the_losses_of_the_whole_and_every_weight_its_gradient() -> None:
    made, x_0 = network(), texts()
    stages = drafting.next_token(made, MASK, BOS, 3, 2)
    whole = stages(batches.training_batch(x_0, 7, torch.arange(6), 4, 6))
    parts = [stages(batches.training_batch(x_0[rows], 7, rows, 4, 6)) for rows in torch.arange(6).split([1, 2, 3])]
    torch.testing.assert_close(torch.cat([part[contracts.LOSS] for part in parts]), whole[contracts.LOSS])
    whole[contracts.LOSS].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in made.parameters())
    plain = network()
    (-autoregressive.ar_log_prob(plain, x_0, MASK, BOS)).sum().backward()
    assert not torch.allclose(plain.head.weight.grad, made.head.weight.grad), "drafts are learned too"


@pytest.mark.parametrize(("ahead", "every", "named"), [(0, 1, "ahead = 0"), (2, 0, "every = 0")])
def test_no_run_and_no_row_is_refused(ahead: int, every: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        drafting.next_token(network(), MASK, BOS, ahead, every)
