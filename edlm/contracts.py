"""Contracts between the parts of the library: shapes, TensorDict keys and protocols with their laws.

Shape legend, used in every docstring and comment:

    b  rows (independent sequences)          l  positions of a sequence
    k  particles (candidates of one row)     v  vocabulary, mask id included
    m  most new tokens of a row in a step    d  width of an attention head
    n  flat positions: indices into b * l    p  passes of a reveal plan (a row's non-empty steps)
    h  width of a hidden state               f, w  finished positions, and those of a block

Time `t` lies in [0, 1]: 0 is data, 1 is all masks; a step goes from `t` down to `s < t`.
Logarithms are natural, energies and log-probabilities are in nats, and **low energy means likely**.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, overload, runtime_checkable

from tensordict import TensorDict
from torch import Tensor

# Keys of the TensorDicts that travel between stages.
X_0 = "x_0"  # (b, l) tokens of the data, no masks
X_T = "x_t"  # (b, l) tokens at time t, masks allowed
X_S = "x_s"  # (b, l) tokens at time s
T = "t"  # (b,) float64
S = "s"  # (b,) float64, where the step from t ends
POSITIONS = "positions"  # (n,) flat indices into b * l where tokens are proposed; b * l is padding
NEW = "new"  # (b, m) the positions that this step reveals in each row, ascending; l is padding
REVEAL = "reveal"  # (b, l) bool: the positions this step reveals
REMASK = "remask"  # (b, l) bool: the positions that this step masks again
P_WRITTEN = "p_written"  # (b, l) float64: the probability of a token when it was written, inf where none was
ALPHA_T = "alpha_t"  # () float64: the share of visible tokens at t, and the next at s
ALPHA_S = "alpha_s"
MOVE_NOISE = "move_noise"  # (b, l) float64 uniforms: what is revealed, and what is masked again
CORRECTED = "corrected"  # (b,) bool: the row is inside the energy's window
PROPOSAL_NOISE = "proposal_noise"  # (n, k) float64 uniforms
SELECTION_NOISE = "selection_noise"  # (b, k) float64 uniforms
HIDDEN = "hidden"  # (n, h) states of the denoiser at the positions
TARGET = "target"  # (n, h) those of a teacher, from which the law of each position is learned
STATES = "states"  # (b, l, h) states of the denoiser at all positions of x_t, of a kernel that carries them
CONTEXT = "context"  # (b, layers, 2, heads, l, d) keys and values of the denoiser's pass over x_t
CACHE = "cache"  # (b, layers, 2, heads, l, d) keys and values of what is finished, of a kernel that keeps them
FINISHED = "finished"  # (b, f) positions that are finished and not yet in the cache
BLOCK = "block"  # (b, w) positions of the block that a row is in; l where it has fewer
READ = "read"  # (b,) tokens that the denoiser reads beside the cache
CANDIDATE_STATES = "candidate_states"  # (b, k, l, h) those of the candidates
CANDIDATES = "candidates"  # (b, k, l) whole drafts, or x_s: drafts of what a step reveals, masks elsewhere
LOG_P_CANDIDATES = "log_p_candidates"  # (b, k, l) log p_theta of each drawn token, zero where none was drawn
PROPOSED = "proposed"  # (n,) tokens drawn at the positions, one for each
LOG_P_PROPOSED = "log_p_proposed"  # (n,) their log-probability under that law
IN_ORDER = "in_order"  # (n, h) states that predict the positions from x_t and the new tokens before them
ACCEPTED = "accepted"  # (n,) bool: what was proposed stays
NO_LAW = "no_law"  # (n,) bool: the network gave no law there
LOG_RATIO = "log_ratio"  # (b, k) log p_theta less the log-probability of what really proposed the draft
ENERGY = "energy"  # (b, k)
CHOSEN = "chosen"  # (b,) index of the particle that was kept
PARTICLES = "particles"  # (b,) how many candidates were weighed
ROUNDS = "rounds"  # (b,) how often candidates were proposed and weighed, or what was proposed was verified
CALLS = "calls"  # (b,) calls of a network one after the other
DENOISER_TOKENS = "denoiser_tokens"  # (b,) tokens that the denoiser's pass over x_t has read
ENERGY_TOKENS = "energy_tokens"  # (b,) tokens that the correction has read, parts of a text too
OWED = "owed"  # (b,) tokens read for the states that a kernel carries, counted by the step that uses them
ESS = "ess"  # (b,) effective sample size of the step, in [1, k]
LOG_WEIGHT_STD = "log_weight_std"  # (b,) standard deviation of the log-weights over particles

# Keys of training: the noise of a step is a pure function of the first four.
SEED = "seed"  # () int64
ROW = "row"  # (b,) int64, index of the row in the whole batch
STEP = "step"  # () int64, number of the training step
NUM_ROWS = "num_rows"  # () int64, rows of the whole batch, of which a process or a micro-batch holds a part
NUM_TOKENS = "num_tokens"  # () int64, tokens of the whole batch that are not padding
ATTENTION = "attention"  # (l, l) bool, which positions a row reads while attention opens; a bos in front is one more
WEIGHT = "weight"  # (b,) weight of the NELBO at t
WEIGHTS = "weights"  # (b, l) the same of every position, where each block has a time of its own
LOG_PROB = "log_prob"  # (b, l) log-probability of the data's tokens, zero where none is predicted
LOG_PROB_IN_ORDER = "log_prob_in_order"  # (b, l) the same of what a step reveals, read in order
LOG_PROB_DRAFTED = "log_prob_drafted"  # (b, l) the same of what a causal network drafts with masks behind a text
LOSS = "loss"  # (b,) what is differentiated

# The shape of each, by the letters above: what a loop slices and what an execution mode lets vary follow from it.
SHAPES = {
    **dict.fromkeys((X_0, X_T, X_S, REVEAL, REMASK, WEIGHTS, LOG_PROB, LOG_PROB_IN_ORDER, LOG_PROB_DRAFTED), "b l"),
    **dict.fromkeys((P_WRITTEN, MOVE_NOISE), "b l"),
    **dict.fromkeys((T, S, CORRECTED, CHOSEN, PARTICLES, ESS, LOG_WEIGHT_STD), "b"),
    **dict.fromkeys((ROUNDS, CALLS, DENOISER_TOKENS, ENERGY_TOKENS, OWED, READ, ROW, WEIGHT, LOSS), "b"),
    **dict.fromkeys((POSITIONS, PROPOSED, LOG_P_PROPOSED, ACCEPTED, NO_LAW), "n"),
    **dict.fromkeys((HIDDEN, TARGET, IN_ORDER), "n h"),
    **dict.fromkeys((CANDIDATES, LOG_P_CANDIDATES), "b k l"),
    **dict.fromkeys((SELECTION_NOISE, LOG_RATIO, ENERGY), "b k"),
    **dict.fromkeys((SEED, STEP, NUM_ROWS, NUM_TOKENS, ALPHA_T, ALPHA_S), ""),
    ATTENTION: "l l",
    NEW: "b m",
    PROPOSAL_NOISE: "n k",
    STATES: "b l h",
    **dict.fromkeys((CONTEXT, CACHE), "b layers 2 heads l d"),
    **{FINISHED: "b f", BLOCK: "b w"},
    CANDIDATE_STATES: "b k l h",
}

Positions = Literal["revealed", "masked"]  # which positions a kernel proposes tokens for
Scope = Literal["draft", "transition"]  # what an energy weighs: whole drafts, or what a step reveals


class Schedule(NamedTuple):
    """`alpha`: t in [0, 1] to the kept fraction; `alpha_slope`: d alpha / dt <= 0; `inverse`: alpha to t.

    Laws: `alpha` decreases; `alpha_slope` is its derivative; `inverse(alpha(t)) = t`. Each maps a tensor to a tensor
    of the same shape and type.
    """

    alpha: Callable[[Tensor], Tensor]
    alpha_slope: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


class Reads(NamedTuple):
    """The reading of one row by an energy: whole texts, whole texts of each candidate, and tokens of what is new.

    texts: passes over x_t, whatever the number of candidates; candidates: passes over each of them; new: tokens read of
    a candidate for each new token of it but the first; in_turn: passes for each of these, one after the other.
    calls: of a network, one after the other, where anything is read.
    """

    texts: int = 0
    candidates: int = 1
    new: int = 0
    in_turn: int = 0
    calls: int = 1


@runtime_checkable
class Network(Protocol):
    """A transformer that gives hidden states where they are wanted, and a vocabulary head that runs on those alone.

    Laws: `head(network(tokens, sigma)[i, j])` are the logits of row i, position j; with positions the network gives
    `network(tokens, sigma).flatten(0, 1)[positions]`, and may leave out what only other positions need; rows do not
    see each other.
    """

    def __call__(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Tokens (b, l) and noise levels (b,) to hidden states (b, l, h), or (n, h) at flat positions (n,)."""
        ...

    def head(self, hidden: Tensor, columns: slice | None = None) -> Tensor:
        """Map hidden states (..., h) to logits (..., v), or to some columns of them: `blocks.Head` does both."""
        ...


@runtime_checkable
class Joint(Network, Protocol):
    """A network with a second head: the states of x_s, by which the next step draws, also tell the energy of x_s.

    Laws: those of a network, for what it is called with are tokens alone; `scalars` depends on the states of its own
    row, and is zero at padded positions. One with a `pad_id`, which it never reads, is shown the tokens of x_s too.
    """

    def scalars(self, states: Tensor, expected: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Map states (b, l, h) of x_s, and (n, h) of x_t at new flat positions (n,), to nats (n,): E is their sum."""
        ...


@runtime_checkable
class Ordered(Network, Protocol):
    """A network that can be asked for the tokens of a step one after the other, all in one pass over them alone.

    Laws: what a call gives does not depend on `keep`; `in_order` gives for each new token but the first a law of it, in
    which that token and later ones have no part, so the product of all is a law of the new tokens; candidates and rows
    do not see each other. One with a `pad_id`, which it never reads, is shown x_t, or a candidate, again as `text`, and
    so is one that is `shifted`: the state of the token before predicts a token.
    """

    @overload
    def __call__(
        self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None, keep: Literal[False] = False
    ) -> Tensor: ...

    @overload
    def __call__(
        self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None, *, keep: Literal[True]
    ) -> tuple[Tensor, Tensor]:
        """With `keep`: the states, and what `in_order` has to know of x_t, its first size b."""
        ...

    def in_order(
        self,
        tokens: Tensor,
        where: Tensor,
        mask_id: int,
        context: Tensor,
        sigma: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Tensor:
        """Map new tokens (b, k, m) at places (b, m), ascending, l for none, to states (b, k, m - 1, h) for the head."""
        ...


@runtime_checkable
class Cached(Network, Protocol):
    """A network of blocks that reads only some rows of a text, and all earlier positions from a cache.

    Laws: if the cache holds the keys and values of all positions before the rows, up to the end of a block, the states
    of the rows are those of a pass over the whole text. The keys and values of a position depend only on its block and
    on earlier blocks.
    """

    block_size: int | None

    def after(
        self, text: Tensor, places: Tensor, cache: Tensor, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map rows (b, n) of texts (b, l) to states (b, n, h), or (n', h), and keys and values of the rows."""
        ...

    def no_context(self, b: int) -> Tensor:
        """Return a cache of no position."""
        ...


@runtime_checkable
class Causal(Network, Protocol):
    """A network that reads from left to right, and continues from a cache of what it has read.

    Laws: state i depends only on the tokens up to i. `follow` gives the states of one pass over the whole text, and
    changes no argument. Rows do not see each other.
    """

    max_length: int  # the longest sequence it was built for

    def follow(self, tokens: Tensor, start: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Read tokens (b, m) at places from `start` (b,) on, after the first `start` kept ones: states (b, m, h).

        The cache is a pair of tensors (layers, b, heads, l, d), and so is what is to be kept of these tokens, m long.
        """
        ...

    def empty_cache(self, b: int, length: int) -> Any:
        """Allocate what is kept of b rows of `length` positions."""
        ...


@runtime_checkable
class Denoiser(Protocol):
    """A factorised law over the data given `x_t`: a TensorDict module `{x_t, t, positions} -> {hidden}`.

    Laws: rows do not see each other; `logits` never gives the mask any probability; only the asked-for positions
    are worked on; the hidden state of a padded position is never read.
    """

    mask_id: int
    vocab_size: int
    max_length: int  # the longest sequence the network was built for
    schedule: Schedule  # of the masking process that it inverts

    def __call__(self, tensordict: TensorDict) -> TensorDict:
        """Write the hidden states (n, h) of `positions`."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (n, h) to unnormalised log-probabilities (n, v), `-inf` at the mask id."""
        ...


@runtime_checkable
class Energy(Protocol):
    """An unnormalised correction of the denoiser: `{candidates, x_t, t, positions, log_p_candidates} -> {energy}`.

    The target is `p ~ p_theta(candidate | x_t) * exp(-energy)`, in nats. A candidate is any token tensor (b, k, l),
    masks allowed; in a row that is corrected, positions are those that the candidates fill in. Laws: particles and rows
    do not see each other; adding a constant per row changes no sample.

    It may say in `scopes` what it can weigh, its own first, and in `reads` what it reads; an energy that does not is
    one of either scope that reads every candidate once.
    """

    in_keys: list[str]

    def __call__(self, tensordict: TensorDict) -> TensorDict:
        """Write the energies (b, k)."""
        ...


class Selection(Protocol):
    """The choice of the particle that is kept: log-weights (b, k) and uniforms (b, k) to an index (b,).

    Laws: adding a constant to a row's log-weights changes nothing; a particle of weight zero is never chosen.
    """

    def __call__(self, log_weights: Tensor, uniforms: Tensor) -> Tensor:
        """Choose one particle per row."""
        ...
