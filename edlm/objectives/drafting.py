"""Training of a causal network that drafts its own next tokens (compare Liu et al. 2025, TiDAR, arXiv 2511.08923)."""

import torch
import torch.nn.functional as F
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn

from edlm.declaration import sequence, stage
from edlm.models import denoisers
from edlm.nn import drafting
from edlm.nn.networks import Transformer
from edlm.objectives import losses
from edlm.process import noise
from edlm.process.noise import Stream


def next_token(
    network: Transformer, mask_id: int, bos_id: int, ahead: int, every: int = 1, pad_id: int | None = None
) -> TensorDictSequential:
    """Build the training pipeline of a causal network with drafts: `{x_0, seed, row, step} -> {log_prob, ..., loss}`.

    The loss is `-log p(x_0)` in nats per row, exact, and in one row of `every` also

        sum_i -log p(x_i | x_<s(i)),

    what masks predict that stand in runs of `ahead` behind the text before them. Where runs begin is drawn for every
    step. The first token of a text is never drafted, and padding never counts.
    Raises ValueError unless ahead >= 1 and every >= 1.
    """
    for name, value in {"ahead": ahead, "every": every}.items():
        if value < 1:
            raise ValueError(f"{name} = {value} must be at least 1")
    return sequence(
        {
            "score": stage(
                "x_0, seed, row, step -> log_prob, log_prob_drafted",
                _Score(network, mask_id, bos_id, ahead, every, pad_id),
            ),
            "objective": stage("log_prob, log_prob_drafted -> loss", losses.next_token_and_drafts),
        }
    )


class _Score(nn.Module):
    """Log-probabilities of the data, token by token and as drafts: (b, l) to (b, l) each, zero at padding."""

    def __init__(
        self, network: Transformer, mask_id: int, bos_id: int, ahead: int, every: int, pad_id: int | None
    ) -> None:
        super().__init__()
        self.network, self.law = network, denoisers.subs(network, mask_id)
        self.mask_id, self.bos_id, self.ahead, self.every, self.pad_id = mask_id, bos_id, ahead, every, pad_id

    def forward(self, x_0: Tensor, seed: Tensor, row: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        read = F.pad(x_0[:, :-1], (1, 0), value=self.bos_id)
        counted = torch.ones_like(x_0, dtype=torch.bool) if self.pad_id is None else x_0 != self.pad_id
        drafting_rows = row % self.every == 0
        (some,), (others,) = torch.where(drafting_rows), torch.where(~drafting_rows)
        known, drafted = drafting.beside_masks(
            self.network, read[some], self.mask_id, self.ahead, self._offset(seed, step)
        )
        states = known.new_zeros(*x_0.shape, known.shape[-1]).index_copy(0, some, known)
        if len(others):
            states = states.index_copy(0, others, self.network(read[others]))
        behind = counted[some] & (torch.arange(x_0.shape[1], device=x_0.device) > 0)
        found = self._log_prob(drafted, x_0[some], behind)
        return self._log_prob(states, x_0, counted), found.new_zeros(x_0.shape).index_copy(0, some, found)

    def _offset(self, seed: Tensor, step: Tensor) -> Tensor:
        """Draw how much shorter the first run is, int64 (): each length is as likely."""
        return (noise.uniforms(seed, torch.zeros_like(step), step, Stream.TIME).squeeze(-1) * self.ahead).long()

    def _log_prob(self, states: Tensor, tokens: Tensor, counted: Tensor) -> Tensor:
        wanted = counted.flatten().nonzero().squeeze(-1)
        hidden = states.flatten(0, 1)[wanted]
        found = self.law.token_log_prob(hidden, tokens.flatten()[wanted], torch.ones_like(hidden[:, 0]))
        return found.new_zeros(tokens.numel()).index_copy(0, wanted, found).view_as(tokens)
