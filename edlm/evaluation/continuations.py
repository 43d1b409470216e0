"""Texts asked of a model one by one: how likely a continuation or a whole text is, and a continuation up to a stop.

It is what test suites of language models ask. An answer is a function of the model, the request and the seed: requests
with the same context share their draws, and no answer depends on the others.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edlm.data import pieces
from edlm.data.pieces import Excerpt
from edlm.data.vocabulary import Vocabulary
from edlm.evaluation import figures
from edlm.evaluation.figures import TextSet
from edlm.likelihood import conditional, exact
from edlm.process import arguments
from edlm.samplers import autoregressive, configs, pipelines, plans
from edlm.samplers.sampler import Proposal, Sampler
from edlm.weights.hub import Model

COLDEST = 1e-30  # the temperature of what is asked for without any: no other token than the most likely one is drawn
_REPEATS = 1 << 16  # keys of the blocks of one repetition


class Answer(NamedTuple):
    """The log-probability of a continuation in nats, the error of its draws, and whether greedy decoding writes it."""

    log_prob: float
    standard_error: float
    greedy: bool


class Wanted(NamedTuple):
    """A continuation that is wanted: up to the first of these strings, of at most so many tokens."""

    stops: tuple[str, ...] = ()
    most: int = 256
    temperature: float = 1.0
    nucleus: float = 1.0


@dataclass(frozen=True)
class Reading:
    """A model, and how it is asked.

    plan, tokens_per_pass: how a denoiser writes. A plan that is a rule is also scored as it writes, which is exact; of
    any other, the NELBO is a bound, a mean of `num_draws`. block_length: tokens that are written before a stop is
    looked for. batch_size: texts at once, where the likelihood is exact.
    Raises ValueError, naming the key, for a number below one, and for a model that is neither denoiser nor AR model.
    """

    model: Model
    plan: str = plans.TokensPerPass.name
    tokens_per_pass: int = 1
    num_draws: int = 64
    block_length: int = 32
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name in ("num_draws", "block_length", "batch_size"):
            arguments.require_whole(name, getattr(self, name))
        arguments.require_whole("seed", self.seed, 0)
        _ = self.sampler  # refuses a model that is neither

    @cached_property
    def sampler(self) -> Sampler | None:
        """The sampler by which a denoiser writes; None of an AR model."""
        if self.model.kind == "ar":
            return None
        return configs.from_config({"plan": {"name": self.plan, "count": self.tokens_per_pass}}, self.model.denoiser)

    @cached_property
    def network(self) -> Any:
        """An AR model's network, as it is sampled."""
        return self.model.autoregressive

    @property
    def max_length(self) -> int:
        """The longest text that the model reads."""
        longest: int = self.network.max_length if self.sampler is None else self.sampler.denoiser.max_length
        return longest

    @property
    def is_exact(self) -> bool:
        """Whether a continuation's probability is known, and not only a bound of it."""
        return self.sampler is None or not exact.missing(self.sampler)

    @property
    def likelihood(self) -> str:
        """A sentence that says what a log-likelihood of this reading is."""
        if self.sampler is None:
            return "exact, of an autoregressive model"
        if self.is_exact:
            return f"exact, of the denoiser written {self.sampler.plan}"
        return f"a lower bound, the negative NELBO of the denoiser, a mean of {self.num_draws} draws"


def encode_pair(vocabulary: Vocabulary, context: str, continuation: str) -> tuple[Tensor, Tensor]:
    """Encode a context and what follows it: the ids of both together, cut where those of the context end.

    White space at the end of a context goes to the continuation, as a token has it before its word.
    """
    first, whole = vocabulary.encode(context.rstrip()), vocabulary.encode(context + continuation)
    return first, whole[len(first) :]


def score(reading: Reading, pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Answer]:
    """Score continuations given their contexts, both as ids. A context that is too long is cut on its left.

    Raises ValueError for a continuation without tokens or longer than the model reads, and for a first token that an AR
    model without a bos cannot score.
    """
    excerpts, keys = [], []
    for context, continuation in pairs:
        if not 1 <= len(continuation) <= reading.max_length:
            raise ValueError(f"a continuation of {len(continuation)} tokens must have 1 to {reading.max_length}")
        given = context[max(0, len(context) + len(continuation) - reading.max_length) :]
        excerpts.append(Excerpt(torch.cat([given, continuation]), len(given)))
        keys.append(context if len(context) else continuation)
    return _answers(reading, excerpts, keys, decoded=True)


def score_whole(reading: Reading, text: str) -> Answer:
    """Score a whole text: in windows as long as the model reads, each token once, the one before a window given."""
    if not text:
        return Answer(0.0, 0.0, greedy=True)
    longest = reading.max_length
    found = pieces.excerpts([text], reading.model.vocabulary, longest, joined=False, context=min(1, longest - 1))
    parts = _answers(reading, found, [excerpt.tokens for excerpt in found], decoded=False)
    error = sum(part.standard_error**2 for part in parts) ** 0.5
    return Answer(sum(part.log_prob for part in parts), error, all(part.greedy for part in parts))


@torch.no_grad()
def complete(reading: Reading, context: str, wanted: Wanted, repetition: int = 0) -> str:
    """Write what follows a context, block by block, up to a stop, the end of the text, or so many tokens.

    A temperature of zero takes the most likely token. A context that is too long is cut on its left.
    Raises ValueError for a nucleus of an AR model, and as samplers do.
    """
    vocabulary, size = reading.model.vocabulary, min(reading.block_length, reading.max_length - 1)
    before, text = vocabulary.encode(context), ""
    shown, key, written = str(vocabulary.decode(before)), _key(reading, before), before[:0]
    ends = torch.tensor(
        [each for each in (vocabulary.eos_id, vocabulary.end_id, vocabulary.pad_id) if each is not None]
    )
    for number in range(-(-wanted.most // size)):
        count = min(size, wanted.most - len(written))
        given = torch.cat([before, written])[-(reading.max_length - count) :]
        block = _block(reading, given, count, wanted, key, repetition * _REPEATS + number)
        (ended,) = torch.where(torch.isin(block, ends))
        written = torch.cat([written, block[: ended[0]] if len(ended) else block])
        text = str(vocabulary.decode(torch.cat([before, written])))[len(shown) :]
        stopped = [text.index(stop) for stop in wanted.stops if stop and stop in text]
        if stopped or len(ended):
            return text[: min(stopped, default=len(text))]
    return text


def _block(reading: Reading, given: Tensor, count: int, wanted: Wanted, seed: int, row: int) -> Tensor:
    """Draw the ids of the next `count` tokens."""
    model, heat, length = reading.model, wanted.temperature or COLDEST, len(given) + count
    how: dict[str, Any] = {"seed": seed, "prompt": given, "first_row": row}
    if reading.sampler is None:
        if wanted.nucleus != 1.0:
            raise ValueError(f"top_p = {wanted.nucleus} needs a denoiser: an AR model is drawn from its whole law")
        ids = model.vocabulary.mask_id, model.bos_id
        drawn = autoregressive.sample(reading.network, 1, length, *ids, temperature=heat, **how).tokens
    else:
        sampler = reading.sampler.replace(proposal=Proposal(heat, wanted.nucleus))
        drawn = pipelines.sample(pipelines.pipeline(sampler, length), 1, **how)["tokens"]
    return drawn[0, -count:].cpu()


def _answers(reading: Reading, excerpts: list[Excerpt], keys: Sequence[Tensor], decoded: bool) -> list[Answer]:
    """Score excerpts of any lengths. decoded: whether greedy decoding is tried, or said to fail."""
    found: dict[int, Answer] = {}
    device = next(reading.model.network.parameters()).device
    for tokens, scored, row in figures.batches(TextSet("", excerpts, len(excerpts), 0), reading.batch_size):
        noise_keys = [_key(reading, keys[number]) for number in row.tolist()]
        columns = _scored(reading, tokens.to(device), scored.to(device), noise_keys, decoded)
        found |= {
            number: Answer(-nats, error, greedy)
            for number, nats, error, greedy in zip(row.tolist(), *(each.tolist() for each in columns), strict=True)
        }
    return [found[number] for number in range(len(excerpts))]


def _scored(
    reading: Reading, x_0: Tensor, scored: Tensor, keys: Sequence[int], decoded: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Nats of the scored tokens of texts (b, l), their error, and whether greedy decoding writes them: (b,) each."""
    model, sampler = reading.model, reading.sampler
    none = torch.zeros(len(x_0), dtype=torch.float64)
    if sampler is None:
        nats, greedy = conditional.in_order(reading.network, x_0, scored, model.vocabulary.mask_id, model.bos_id)
        return nats, none, greedy
    greedy = conditional.greedy(sampler.denoiser, x_0, scored) if decoded else none.bool()
    if reading.is_exact:
        return exact.of_sampler(sampler, x_0, scored).nats * scored.sum(-1), none, greedy
    row = torch.zeros(1, dtype=torch.int64, device=x_0.device)
    bounds = [
        conditional.bound(
            sampler.denoiser,
            x_0[i : i + 1],
            scored[i : i + 1],
            torch.tensor(key, device=x_0.device),
            row,
            num_draws=reading.num_draws,
        )
        for i, key in enumerate(keys)
    ]
    return torch.cat([each.nats for each in bounds]), torch.cat([each.standard_error for each in bounds]), greedy


def _key(reading: Reading, tokens: Tensor) -> int:
    """Make the seed of a request: that of the reading, and 31 bits that its tokens decide."""
    return (zlib.crc32(tokens.numpy().tobytes()) >> 1 << 32) | (reading.seed & 0xFFFFFFFF)
