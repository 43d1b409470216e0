"""The likelihood of a part of a text given the rest: of a continuation after its context, or of a gap between two.

An autoregressive model has it exactly. A denoiser is given the context unmasked and has the rest masked. Then its bound
is the NELBO of the masked part alone. Where a sampler's plan is a rule, `exact.of_sampler` has the law itself.
"""

from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from edlm import contracts
from edlm.contracts import Denoiser
from edlm.likelihood import nelbo
from edlm.models import autoregressive
from edlm.process import absorbing, arguments, categorical, finite


class Bound(NamedTuple):
    """Per row, (b,) each: nats of all scored tokens together, a mean of draws, and its standard error.

    The error is that of independent draws. The draws of a text are stratified, so it is rather too large. NaN for one.
    """

    nats: Tensor
    standard_error: Tensor


class InOrder(NamedTuple):
    """Per row, (b,) each: the exact nats of all scored tokens, and whether each is the most likely one in its place."""

    nats: Tensor
    greedy: Tensor


@torch.no_grad()
def bound(denoiser: Denoiser, x_0: Tensor, scored: Tensor, seed: Tensor, row: Tensor, *, num_draws: int) -> Bound:
    """Draw an unbiased value per row of the NELBO of the scored tokens given all others, in nats.

    It is an upper bound of `-log p(x^scored | x^given)`, p the law of what first hitting writes after that prompt. A
    value is a mean over `num_draws` reveal orders, with a random pass of each. The passes of one text are stratified:
    of k n draws of n tokens, k - 1 to k + 1 meet each number of masks. A row's value does not depend on other rows.

    Args:
        denoiser: the law of the masks.
        x_0: texts (b, l).
        scored: the positions that count, bool (b, l); the others are given.
        seed: of the draws, int64 ().
        row: the key of each row's draws, int64 (b,), below `2^32 / num_draws`.
        num_draws: how many draws; all of one text are read at once.

    Returns:
        A `Bound` of each row.

    Raises:
        ValueError: for num_draws < 1, and for what are no texts, keys or scored positions.

    Example:
        >>> import edlm, torch
        >>> from edlm.likelihood import conditional, hidden_markov
        >>> source = hidden_markov.random_markov(0, 3)
        >>> texts = hidden_markov.texts(source, 2, 8, seed=1)
        >>> continuation = (torch.arange(8) >= 6).expand(2, 8)
        >>> denoiser = hidden_markov.denoiser(source, 8)
        >>> keys = torch.tensor(0), torch.arange(2)
        >>> found = conditional.bound(denoiser, texts, continuation, *keys, num_draws=64)
        >>> given = hidden_markov.log_prob(source, texts[:, :6]) - hidden_markov.log_prob(source, texts)
        >>> bool(((found.nats - given).abs() < 5 * found.standard_error).all())  # its posterior is exact, so p is too
        True
    """
    arguments.require_whole("num_draws", num_draws)
    nelbo.check_texts(denoiser, x_0, scored, row)
    number = torch.arange(num_draws, device=x_0.device)
    found = []
    for text, wanted, key in zip(x_0, scored, row, strict=True):
        rows = [each.expand(num_draws, -1) for each in (text, wanted)]
        values = nelbo.nelbo(denoiser, denoiser.schedule, rows[0], seed, key * num_draws + number, rows[1])
        found.append(values * wanted.sum())
    draws = torch.stack(found)
    return Bound(draws.mean(-1), draws.std(-1) / num_draws**0.5 if num_draws > 1 else draws[:, 0] * torch.nan)


@torch.no_grad()
def greedy(denoiser: Denoiser, x_0: Tensor, scored: Tensor) -> Tensor:
    """Check whether greedy decoding writes the scored tokens: the most likely token, one at a time from left to right.

    A row that has failed is read no more.

    Args:
        denoiser: the law of the masks.
        x_0: texts (b, l).
        scored: the positions that are written, bool (b, l); the others are given.

    Returns:
        Whether each row is what is written, bool (b,).

    Raises:
        ValueError: for what are no texts or no scored positions.

    Example:
        >>> import edlm, torch
        >>> from edlm.likelihood import conditional, hidden_markov
        >>> denoiser = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 2)
        >>> texts = torch.tensor([[0, 0], [0, 1], [0, 2]])
        >>> int(conditional.greedy(denoiser, texts, torch.tensor([[False, True]]).expand(3, 2)).sum())
        1
    """
    nelbo.check_texts(denoiser, x_0, scored)
    order = torch.where(scored, scored.cumsum(1) - 1, -1)
    so_far = torch.ones(len(x_0), dtype=torch.bool, device=x_0.device)
    for number in range(int(order.max()) + 1):
        (rows,) = torch.where(so_far & (order.amax(1) >= number))
        if not len(rows):
            break
        masked, now = order[rows] >= number, order[rows] == number
        x_t = torch.where(masked, denoiser.mask_id, x_0[rows])
        t = absorbing.time_of_share(masked.sum(-1).double() / x_0.shape[1], denoiser.schedule)
        state = {contracts.X_T: x_t, contracts.T: t, contracts.POSITIONS: now.flatten().nonzero().squeeze(-1)}
        likely = denoiser.logits(denoiser(TensorDict(state))[contracts.HIDDEN]).argmax(-1)
        so_far[rows] = likely == x_0[rows][now]
    return so_far


@torch.no_grad()
def in_order(network: nn.Module, x_0: Tensor, scored: Tensor, mask_id: int, bos_id: int | None) -> InOrder:
    """Compute `-log p(x_i | x_<i)` of an autoregressive model, summed over the scored tokens: exact.

    Args:
        network: causal.
        x_0: texts (b, l).
        scored: the positions that count, bool (b, l).
        mask_id: an id that no text has.
        bos_id: what is read in front of a text; None: its first token is given.

    Returns:
        An `InOrder` of each row.

    Raises:
        ValueError: for a row without a scored position, a first token that is scored without a bos, and logits that are
            no numbers.

    Example:
        >>> import edlm, torch
        >>> from edlm.likelihood import conditional
        >>> sizes = {"max_length": 8, "hidden_size": 16, "num_layers": 1, "num_heads": 2}
        >>> network = edlm.networks.Transformer(5, **sizes, causal=True).eval()
        >>> texts = torch.tensor([[0, 1, 2, 3]])
        >>> conditional.in_order(network, texts, torch.tensor([[False, True, True, True]]), 4, None).nats.shape
        torch.Size([1])
    """
    nelbo.check_scored(scored)
    if bos_id is None and bool(scored[:, 0].any()):
        raise ValueError("without a bos_id the first token of a text has no law of its own: it can only be given")
    positions = scored.flatten().nonzero().squeeze(-1)
    read, behind = (x_0, 1) if bos_id is None else (nn.functional.pad(x_0[:, :-1], (1, 0), value=bos_id), 0)
    hidden, wanted = network(read, None, positions - behind), x_0.flatten()[positions].unsqueeze(-1)
    law = autoregressive.Law(network, mask_id)
    rows = categorical.rows_at_once(law.vocab_size, x_0.device)
    log_p, likely = [], []
    for states, tokens in zip(hidden.split(rows), wanted.split(rows), strict=True):
        logits = law.logits(states)
        log_p.append(categorical.token_log_prob(logits, tokens).squeeze(-1).double())
        likely.append(logits.argmax(-1) == tokens.squeeze(-1))
    found = torch.zeros(x_0.numel(), dtype=torch.float64, device=x_0.device)
    found = found.index_copy(0, positions, torch.cat(log_p)).view_as(scored)
    finite.require_log_prob(found, "the autoregressive model")
    hit = scored.flatten().index_copy(0, positions, torch.cat(likely)).view_as(scored)
    return InOrder(-found.sum(-1), (hit | ~scored).all(-1))
