"""The laws of parts that may be plugged in, as functions to call from a test: energies, denoisers, selections, rules.

Each runs the part on inputs as a sampler makes them and raises AssertionError with the law that is broken and the rows
that break it. The inputs are keyed noise, so a check says the same every time.
"""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn

from edlm import contracts
from edlm.contracts import Denoiser, Selection
from edlm.models import energies
from edlm.models.drafts import ENERGY_KEYS, drafts, fill_half, mix_rows, only_particle, only_rows, pad_positions
from edlm.process import categorical, noise, schedules
from edlm.process.noise import Stream
from edlm.samplers import corrections, execution, pipelines, plans, selections
from edlm.samplers.planning import Rule, Seen
from edlm.samplers.sampler import Sampler

_DENOISER_KEYS = (contracts.X_T, contracts.T, contracts.POSITIONS)
_SMALLEST, _LARGEST = 2.0**-53, 1.0 - 2.0**-53  # the extreme uniforms


@torch.no_grad()
def check_energy(
    energy: TensorDictModuleBase,
    vocab_size: int,
    mask_id: int,
    length: int = 8,
    num_rows: int = 3,
    num_particles: int = 4,
    seed: int = 0,
    tolerance: float = 1e-4,
) -> None:
    """Check the laws of an `Energy`, on the device of its parameters.

    It reads keys of `ENERGY_KEYS` and edits none; it writes floats (b, k), finite or +inf, for any number of particles
    and for candidates with masks; the same again for the same input; particles and rows do not see each other; padded
    positions, and those of other rows, change nothing; a constant per row changes no sample.

    Args:
        energy: what is checked.
        vocab_size: ids, the mask's included.
        mask_id: the mask's.
        length: tokens of a text.
        num_rows: texts.
        num_particles: candidates of each.
        seed: of the inputs.
        tolerance: relative, in nats below one nat.

    Raises:
        AssertionError: with the law that is broken, and the rows that break it.

    Example:
        >>> import edlm
        >>> edlm.testing.check_energy(edlm.energies.zero(), vocab_size=5, mask_id=4)
    """
    make = _maker(vocab_size, mask_id, length, num_rows, num_particles, _device_of(energy))
    inputs = make(seed)
    found = _energy_of(energy, inputs)
    _require_equal("the same input gives the same energy", _energy_of(energy, inputs), found)
    near = _Near(tolerance)
    for j in range(num_particles):
        near(
            f"particle {j} alone has its energy among others",
            _energy_of(energy, only_particle(inputs, j)),
            found[:, [j]],
        )
    other = make(seed + 1)
    for i in range(num_rows):
        near(
            f"row {i} alone has its energy among others",
            _energy_of(energy, only_rows(inputs, [i], mask_id)),
            found[[i]],
        )
        mixed = mix_rows(inputs, other, i, mask_id)
        near(f"row {i} has the same energy among other rows", _energy_of(energy, mixed)[[i]], found[[i]])
    near("padded positions change no energy", _energy_of(energy, pad_positions(inputs)), found)
    _energy_of(energy, fill_half(inputs, mask_id))
    _check_constant(energy, vocab_size, mask_id, length, num_rows, num_particles, seed)


@torch.no_grad()
def check_denoiser(
    denoiser: Denoiser, length: int = 8, num_rows: int = 3, seed: int = 0, tolerance: float = 1e-4
) -> None:
    """Check the laws of a `Denoiser`, on the device of its parameters.

    It reads `{x_t, t, positions}` and edits none; it writes a state for each position, padded ones too; logits are
    (n, v), -inf at the mask, never NaN or +inf, and leave the states as they are; the same again for the same input;
    rows do not see each other; a position has the same law whichever others are asked for.

    Args:
        denoiser: what is checked.
        length: tokens of a text.
        num_rows: texts.
        seed: of the inputs.
        tolerance: relative, in nats below one nat.

    Raises:
        AssertionError: with the law that is broken, and the rows that break it.

    Example:
        >>> import edlm
        >>> network = edlm.networks.Transformer(5, max_length=8, hidden_size=16, num_layers=1, num_heads=2).eval()
        >>> edlm.testing.check_denoiser(edlm.denoisers.subs(network, mask_id=4))
    """
    mask_id, vocab_size = denoiser.mask_id, denoiser.vocab_size
    _require(1 <= length <= denoiser.max_length, f"length = {length} lies in 1..max_length = {denoiser.max_length}")
    make = _maker(vocab_size, mask_id, length, num_rows, 1, _device_of(denoiser))
    inputs = make(seed)
    found, owner = _law_of(denoiser, inputs), inputs[contracts.POSITIONS] // length
    _require_equal("the same input gives the same law", _law_of(denoiser, inputs), found)
    near = _Near(tolerance)
    other = make(seed + 1)
    for i in range(num_rows):
        alone, mixed = only_rows(inputs, [i], mask_id), mix_rows(inputs, other, i, mask_id)
        near(f"row {i} alone has its law among others", _law_of(denoiser, alone), found[owner == i])
        own = mixed[contracts.POSITIONS] // length == i
        near(f"row {i} has the same law among other rows", _law_of(denoiser, mixed)[own], found[owner == i])
    fewer = inputs.clone().set(contracts.POSITIONS, inputs[contracts.POSITIONS][::2])
    near("a position has the same law if fewer are asked for", _law_of(denoiser, fewer), found[::2])
    padded = _law_of(denoiser, pad_positions(inputs))[: len(found)]
    near("padded positions change no other's law", padded, found)


@torch.no_grad()
def check_selection(selection: Selection, num_particles: int = 4, num_rows: int = 64, seed: int = 0) -> None:
    """Check the laws of a `Selection`, with uniforms at the edges of (0, 1), equal weights and weights of zero.

    It gives int64 (b,) in [0, k) and edits nothing; a constant per row changes no choice; a particle of weight zero is
    never chosen unless all are; rows do not see each other; one particle is always the first.

    Args:
        selection: what is checked.
        num_particles: candidates of each row.
        num_rows: rows.
        seed: of the weights and uniforms.

    Raises:
        AssertionError: with the law that is broken, and the rows that break it.

    Example:
        >>> import edlm
        >>> from edlm.process import particles
        >>> edlm.testing.check_selection(particles.sir)
    """
    row = torch.arange(num_rows)
    u = noise.uniforms(seed, row, 0, Stream.SELECTION, count=num_particles)
    u[::5], u[1::5] = _SMALLEST, _LARGEST
    spread = noise.uniforms(seed, row, 1, Stream.SELECTION, count=num_particles)
    log_w = torch.where(spread < 0.3, -torch.inf, (16 * spread).round())  # whole numbers: a constant is added exactly
    log_w[2::7] = 0.0
    chosen = _choose(selection, log_w, u)
    shifted = _choose(selection, log_w + 8.0 * (row % 9 - 4).unsqueeze(1), u)
    _require_rows("a constant per row changes no choice", shifted == chosen)
    possible = (log_w > -torch.inf).gather(1, chosen.unsqueeze(1)).squeeze(1) | (log_w == -torch.inf).all(1)
    _require_rows("a particle of weight zero is never chosen", possible)
    alone = torch.cat([_choose(selection, log_w[[i]], u[[i]]) for i in range(num_rows)])
    _require_rows("rows do not see each other", alone == chosen)
    _require_rows("one particle is always chosen", _choose(selection, log_w[:, :1], u[:, :1]) == 0)


@torch.no_grad()
def check_rule(plan: Rule, length: int = 8, num_rows: int = 32, seed: int = 0) -> None:
    """Check the laws of a plan that is a `Rule`, as one that reads the pass, where laws are sharp, even and equal.

    The result is bool (b, l), and no input is edited. Only masks are chosen, and at least one of every row that has
    masks. The same input gives the same result. Rows do not see each other. Values at given tokens change nothing.

    Args:
        plan: what is checked.
        length: tokens of a text.
        num_rows: texts.
        seed: of the laws and masks.

    Raises:
        AssertionError: with the law that is broken, and the rows that break it.

    Example:
        >>> import edlm
        >>> edlm.testing.check_rule(edlm.plans.EntropyBound(0.5))
    """
    row = torch.arange(num_rows)
    u = noise.uniforms(seed, row.unsqueeze(1), 0, Stream.EVALUATION, torch.arange(length), count=5)
    logits = 40.0 * u[..., 3:4] ** 3 * u[..., :3]
    logits[::5] = logits[::5, :1]
    seen = Seen(*(value.view(num_rows, length) for value in categorical.certainty(logits.flatten(0, 1))))
    masked = u[..., 4] < (row / num_rows).unsqueeze(1)
    chosen = _revealed(plan, seen, masked)
    _require_rows("only masks are chosen", ~(chosen & ~masked).any(1))
    _require_rows("one at least is chosen of every row with masks", chosen.any(1) == masked.any(1))
    _require_rows("the same input gives the same choice", (_revealed(plan, seen, masked) == chosen).all(1))
    alone = [_revealed(plan, Seen(*(value[[i]] for value in seen)), masked[[i]]) for i in range(num_rows)]
    _require_rows("rows do not see each other", (torch.cat(alone) == chosen).all(1))
    other = Seen(*(torch.where(masked, value, 1.0 - value) for value in seen))
    _require_rows("what is given changes no choice", (_revealed(plan, other, masked) == chosen).all(1))


@torch.no_grad()
def check_one_graph(module: Callable[..., Any], *inputs: TensorDict | Tensor, tolerance: float = 1e-4) -> None:
    """Check that a part is one graph under torch.compile and gives the same in it: what `accelerate` needs of it.

    A part that fails it, because it works on the host, samples in eager mode alone.

    Args:
        module: what is checked.
        inputs: what it is called with.
        tolerance: relative, in nats below one nat.

    Raises:
        AssertionError: with the reason why it is no graph, or what is not the same in it.

    Example:
        >>> import edlm
        >>> edlm.testing.check_one_graph(edlm.energies.zero(), edlm.testing.drafts(vocab_size=5, mask_id=4))
    """
    expected = _tensors(module(*_clones(inputs)))
    try:
        found = _tensors(execution.one_graph(module)(*_clones(inputs)))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise AssertionError(f"law broken: it is one graph under torch.compile ({reason})") from error
    for name, value in expected.items():
        _Near(tolerance)(f"compiled, {name} is the same", found[name].double(), value.double())


class _Near:
    """Require two tensors to agree row by row, infinities included."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance

    def __call__(self, law: str, found: Tensor, expected: Tensor) -> None:
        _require(found.shape == expected.shape, f"{law}: shape {tuple(found.shape)}, not {tuple(expected.shape)}")
        close = torch.isclose(found, expected, rtol=self.tolerance, atol=self.tolerance)
        if not close.all():
            first = tuple((~close).nonzero()[0].tolist())
            _require(False, f"{law}: {found[first].item():g} at {first}, not {expected[first].item():g}")


class _Even(nn.Module):
    """A denoiser's network whose law is the same everywhere: hidden states are the logits."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        super().__init__()
        self.logits = nn.Buffer(torch.zeros(vocab_size, device=device))

    def forward(self, positions: Tensor) -> Tensor:
        return self.logits.expand(len(positions), -1)


class _EvenDenoiser(TensorDictModule):
    def __init__(self, vocab_size: int, mask_id: int, length: int, device: torch.device) -> None:
        super().__init__(_Even(vocab_size, device), in_keys=[contracts.POSITIONS], out_keys=[contracts.HIDDEN])
        self.mask_id, self.vocab_size, self.max_length = mask_id, vocab_size, length
        self.schedule = schedules.log_linear()

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden.index_fill(-1, torch.tensor(self.mask_id, device=hidden.device), -torch.inf)


class _Shifted(TensorDictModuleBase):
    """An energy with a constant of its own for every row of the batch."""

    def __init__(self, energy: TensorDictModuleBase) -> None:
        super().__init__()
        self.in_keys, self.out_keys = list(energy.in_keys), [contracts.ENERGY]
        self.energy = energy

    def forward(self, tensordict: TensorDict) -> TensorDict:
        energy = self.energy(tensordict)[contracts.ENERGY].double()
        constant = 64.0 * torch.arange(1, len(energy) + 1, device=energy.device, dtype=torch.float64)
        return tensordict.set(contracts.ENERGY, energy + constant.unsqueeze(1))


def _check_constant(
    energy: TensorDictModuleBase, vocab_size: int, mask_id: int, length: int, rows: int, k: int, seed: int
) -> None:
    """Sample with the energy, with and without constants added to it."""
    device = _device_of(energy)
    denoiser = _EvenDenoiser(vocab_size, mask_id, length, device)
    texts = []
    for each in (energy, _Shifted(energy)):
        correction = corrections.OfEnergy(each, energies.scopes_of(energy)[0])
        sampler = Sampler(denoiser, plans.Grid(2), correction=correction, candidates=k, selection=selections.IMH)
        pipeline = pipelines.pipeline(sampler, length)
        prompt = torch.full((length,), mask_id, device=device)
        texts.append(pipelines.sample(pipeline, rows, seed=seed, prompt=prompt)["tokens"])
    _require_rows("a constant per row changes no sample", (texts[0] == texts[1]).all(1))


def _maker(
    vocab_size: int, mask_id: int, length: int, rows: int, k: int, device: torch.device
) -> Callable[[int], TensorDict]:
    return lambda seed: drafts(vocab_size, mask_id, length, rows, k, seed, device)


def _energy_of(energy: TensorDictModuleBase, inputs: TensorDict) -> Tensor:
    """The energies (b, k), after a check of what is read and written."""
    unknown = set(energy.in_keys) - set(ENERGY_KEYS)
    _require(not unknown, f"an energy reads {', '.join(ENERGY_KEYS)}, and not {', '.join(sorted(unknown))}")
    out = _written(energy, inputs.select(*energy.in_keys))
    _require(contracts.ENERGY in out, f"an energy writes the key {contracts.ENERGY!r}")
    found: Tensor = out[contracts.ENERGY]
    b, k, _ = inputs[contracts.CANDIDATES].shape
    _require(found.shape == (b, k), f"energies have shape (b, k) = {(b, k)}, not {tuple(found.shape)}")
    _require(found.dtype.is_floating_point, f"energies are floating-point numbers, not {found.dtype}")
    _require_rows("energies are finite or +inf, never NaN or -inf", (found > -torch.inf).all(1))
    return found


def _law_of(denoiser: Denoiser, inputs: TensorDict) -> Tensor:
    """The log-probabilities (n, v) of the positions, float64, after a check of what is read and written."""
    read = inputs.select(*_DENOISER_KEYS)
    hidden = _written(denoiser, read)[contracts.HIDDEN]
    n = len(read[contracts.POSITIONS])
    _require(hidden.ndim == 2 and len(hidden) == n, f"states are (n, h) with n = {n}, not {tuple(hidden.shape)}")
    before = hidden.clone()
    logits = denoiser.logits(hidden)
    _require_equal("logits leave the states as they are", hidden, before)
    shape = (n, denoiser.vocab_size)
    _require(logits.shape == shape, f"logits have shape (n, v) = {shape}, not {tuple(logits.shape)}")
    _require_rows("the mask is never given any probability", logits[:, denoiser.mask_id] == -torch.inf)
    _require_rows("logits are finite or -inf, not all -inf", logits.amax(1).isfinite() & ~logits.isnan().any(1))
    return logits.double().log_softmax(-1)


def _written(module: Callable[[TensorDict], TensorDict], inputs: TensorDict) -> TensorDict:
    """Return what a module returns, after a check that it edited nothing it was given."""
    given = inputs.clone()
    tensors = dict(given.items())
    out = module(given)
    for key, value in inputs.items():
        _require_equal(f"the input {key!r} is not edited", tensors[key], value)
        _require_equal(f"what comes back of {key!r} is what was given", out.get(key, value), value)
    return out


def _choose(selection: Selection, log_weights: Tensor, uniforms: Tensor) -> Tensor:
    given = log_weights.clone(), uniforms.clone()
    chosen = selection(*given)
    for name, after, before in zip(("log-weights", "uniforms"), given, (log_weights, uniforms), strict=True):
        _require_equal(f"the {name} are not edited", after, before)
    b, k = log_weights.shape
    _require(chosen.shape == (b,) and chosen.dtype == torch.int64, f"the choice is int64 ({b},), one per row")
    _require_rows(f"the choice lies in [0, {k})", (chosen >= 0) & (chosen < k))
    return chosen


def _revealed(plan: Rule, seen: Seen, masked: Tensor) -> Tensor:
    given, mask = Seen(*(value.clone() for value in seen)), masked.clone()
    chosen = plan.choose(given, mask)
    for name, after, before in zip((*Seen._fields, "masks"), (*given, mask), (*seen, masked), strict=True):
        _require_equal(f"the {name} are not edited", after, before)
    shape = tuple(masked.shape)
    _require(chosen.shape == shape and chosen.dtype == torch.bool, f"the choice is bool {shape}, one per position")
    return chosen


def _device_of(module: Any) -> torch.device:
    tensors = (*module.parameters(), *module.buffers()) if isinstance(module, nn.Module) else ()
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _clones(inputs: tuple[TensorDict | Tensor, ...]) -> tuple[TensorDict | Tensor, ...]:
    return tuple(each.clone() for each in inputs)


def _tensors(out: Any) -> dict[str, Tensor]:
    return dict(out.items()) if isinstance(out, TensorDict) else {"the result": out}


def _require_equal(law: str, found: Tensor, expected: Tensor) -> None:
    _require(torch.equal(found, expected), law)


def _require_rows(law: str, kept: Tensor) -> None:
    """Require one bool (b,) per row."""
    broken = (~kept).nonzero().flatten().tolist()
    _require(not broken, f"{law}; rows {', '.join(map(str, broken[:8]))} break it")


def _require(kept: bool, law: str) -> None:
    if not kept:
        raise AssertionError(f"law broken: {law}")
