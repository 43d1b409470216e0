"""The stages that a step is made of: choose, propose, select, reveal."""

from collections.abc import Iterator
from functools import partial
from typing import Protocol

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from edlm.contracts import Denoiser, Selection
from edlm.declaration import stage
from edlm.process import absorbing, categorical, finite, particles
from edlm.samplers.planning import Rule, Seen


def propose(denoiser: Denoiser, temperature: float = 1.0, nucleus: float = 1.0) -> TensorDictModule:
    """Build the stage that draws k drafts: `{hidden, x_t, positions, proposal_noise} -> {candidates, ...}`.

    k is the width of the noise, and one pass over the logits serves all k.
    Raises ValueError unless temperature > 0 and 0 < nucleus <= 1.
    """
    finite.require_temperature("temperature", temperature)
    if not 0.0 < nucleus <= 1.0:
        raise ValueError(f"nucleus = {nucleus} must lie in (0, 1]")
    return stage(
        "hidden, x_t, positions, proposal_noise -> candidates, log_p_candidates, log_ratio",
        _Propose(denoiser, temperature, nucleus),
    )


def choose(law: "Law", rule: Rule, mask_id: int) -> TensorDictModule:
    """Build the stage in which a plan chooses what is revealed, by how sure the law of each mask is."""
    return stage("hidden, x_t, positions -> reveal", _Choose(law, rule, mask_id))


def select(selection: Selection, temperature: float) -> TensorDictModule:
    """Build the stage that keeps one candidate, outside the window always the first; how even the weights were too."""
    return stage(
        "energy, log_ratio, selection_noise, corrected -> chosen, particles, rounds, ess, log_weight_std",
        partial(_select, selection, temperature),
    )


def reveal_first() -> TensorDictModule:
    """Build the stage that reveals the tokens of the only draft."""
    return stage(
        "x_t, candidates, reveal -> x_s",
        lambda x_t, candidates, positions: absorbing.reveal(x_t, candidates[:, 0], positions),
    )


def reveal_chosen() -> TensorDictModule:
    """Build the stage that reveals the kept draft's tokens: `{x_t, candidates, chosen, reveal} -> {x_s}`."""
    return stage(
        "x_t, candidates, chosen, reveal -> x_s",
        lambda x_t, candidates, chosen, positions: absorbing.reveal(x_t, _keep(candidates, chosen), positions),
    )


class Tokens(Protocol):
    """A law of tokens at states: a denoiser, or a causal network as `autoregressive.Law`."""

    vocab_size: int

    def logits(self, hidden: Tensor) -> Tensor:
        """Map states (n, h) to unnormalised log-probabilities (n, v), `-inf` at the mask."""
        ...


class Law(nn.Module):
    """The law that tokens are drawn from: logits (n, v) of states (n, h), cooled, and cut to a nucleus."""

    def __init__(self, of: Tokens, temperature: float, nucleus: float) -> None:
        super().__init__()
        self.of, self.temperature, self.nucleus = of, temperature, nucleus

    def forward(self, states: Tensor) -> Tensor:
        """Map states to logits of the law."""
        logits = self.of.logits(states)
        return categorical.nucleus(categorical.cooled(logits, self.temperature), self.nucleus)

    def tiles(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Split the rows of tensors (n, ...) alike, so many at a time as may have their logits at once."""
        rows = categorical.rows_at_once(self.of.vocab_size, tensors[0].device, torch.compiler.is_compiling())
        return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def seen_of(law: Law, hidden: Tensor, positions: Tensor, b: int, l: int) -> Seen:
    """Compute how sure the law of each position is, (b, l) each: states (n, h) at flat positions (n,), 0 elsewhere.

    Of what tokens are drawn from, so temperature and nucleus come first.
    """
    tiles = [torch.stack(categorical.certainty(law(states)), dim=-1) for (states,) in law.tiles(hidden)]
    onto = torch.zeros(b, l, len(Seen._fields), dtype=torch.float64, device=hidden.device)
    return Seen(*spread(torch.cat(tiles), onto, positions).unbind(-1))


class _Choose(nn.Module):
    def __init__(self, law: Law, rule: Rule, mask_id: int) -> None:
        super().__init__()
        self.law, self.rule, self.mask_id = law, rule, mask_id

    def forward(self, hidden: Tensor, x_t: Tensor, positions: Tensor) -> Tensor:
        masked = x_t == self.mask_id
        chosen = self.rule.choose(seen_of(self.law, hidden, positions, *x_t.shape), masked)
        return chosen & masked  # what is given stays, whatever a plan of one's own says


class _Propose(nn.Module):
    """k drafts of every row from one pass over the logits: candidates, their log p_theta, and its ratio to q."""

    def __init__(self, denoiser: Denoiser, temperature: float, nucleus: float) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.temperature = temperature
        self.nucleus = nucleus

    def forward(
        self, hidden: Tensor, x_t: Tensor, positions: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        vocab_size = self.denoiser.vocab_size
        rows = categorical.rows_at_once(vocab_size, hidden.device, torch.compiler.is_compiling())
        tiles = [self._draw(*tile) for tile in zip(hidden.split(rows), uniforms.split(rows), strict=True)]
        drawn, log_p, log_q = (torch.cat(parts) for parts in zip(*tiles, strict=True))
        # Contiguous before it is written to: torch.compile writes into an expanded tensor as if k were 1.
        tokens = x_t.unsqueeze(-1).expand(-1, -1, uniforms.shape[-1]).contiguous()
        ratio = (log_p - log_q).to(torch.float64)
        return (
            spread(drawn, tokens, positions).transpose(1, 2),
            spread(log_p, log_p.new_zeros(tokens.shape), positions).transpose(1, 2),
            spread(ratio, ratio.new_zeros(tokens.shape), positions).sum(1),
        )

    def _draw(self, hidden: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (n, k) from q with their log-probabilities under p_theta and under q."""
        logits = self.denoiser.logits(hidden)
        if self.temperature == 1.0 and self.nucleus == 1.0:
            drawn = categorical.inverse_cdf(logits, uniforms)
            return drawn.tokens, drawn.log_prob, drawn.log_prob
        law = categorical.nucleus(categorical.cooled(logits, self.temperature), self.nucleus)
        drawn = categorical.inverse_cdf(law, uniforms)
        return drawn.tokens, categorical.token_log_prob(logits, drawn.tokens), drawn.log_prob


def spread(values: Tensor, onto: Tensor, positions: Tensor) -> Tensor:
    """Write values (n, k) at flat positions (n,) of (b, l, k); padded positions write into a row that is cut off."""
    b, l, k = onto.shape
    longer = torch.cat([onto.view(b * l, k), onto.new_zeros(1, k)])
    return longer.index_copy(0, positions, values)[:-1].view(b, l, k)


def _select(
    selection: Selection, temperature: float, energy: Tensor, log_ratio: Tensor, uniforms: Tensor, corrected: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    finite.require_one_each(energy, log_ratio)
    log_weights = particles.log_weights(energy, temperature) + log_ratio
    chosen = torch.where(corrected, selection(log_weights, uniforms), 0)
    count, rounds = torch.full_like(chosen, energy.shape[1]), torch.ones_like(chosen)
    return chosen, count, rounds, particles.ess(log_weights), particles.log_weight_std(log_weights)


def _keep(candidates: Tensor, chosen: Tensor) -> Tensor:
    """The chosen particle of each row: (b, k, l) and (b,) to (b, l)."""
    index = chosen[:, None, None].expand(-1, 1, candidates.shape[-1])
    return candidates.gather(1, index).squeeze(1)
