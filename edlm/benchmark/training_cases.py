"""The training steps that a benchmark compares: as usually written, and ours, each from a batch to new weights."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edlm import contracts
from edlm.benchmark import comparison, textbook_training
from edlm.benchmark.comparison import Verdict
from edlm.benchmark.methods import Method
from edlm.data import pieces
from edlm.models import denoisers, energies
from edlm.nn.networks import EnergyNetwork, Transformer
from edlm.objectives import batches, contrastive, denoising
from edlm.process import schedules
from edlm.runs import settings as schemas
from edlm.runs import timing
from edlm.runs.settings import Schema
from edlm.samplers import execution

MODES = ("eager", "compile")
_WARM_UP_STEPS = 3  # so many that a compiler has seen the number of masks change
_BLOCKS = 4096  # rows of the data that batches are taken from
_LOADS = 20
SCHEMA: Schema = {
    "objective": schemas.choice("denoising", "contrast"),
    "vocab_size": schemas.integer(3),
    "length": schemas.integer(1),
    "rows": schemas.integer(1),
    "repeats": schemas.integer(1),
    "target": schemas.optional(schemas.number(0, above=True)),
    "memory_target": schemas.optional(schemas.number(0, above=True)),
    "utilisation_target": schemas.optional(schemas.number(0, 1)),
}


class Case(NamedTuple):
    """One training task: the MDLM objective, or contrast with one draft per row, on random blocks."""

    objective: str
    vocab_size: int
    length: int
    rows: int
    repeats: int

    def __str__(self) -> str:
        return f"training {self.objective} v={self.vocab_size} l={self.length} b={self.rows}"


class Setting(NamedTuple):
    """The sizes of the networks, where they run and in which precision, and the device's peak, for all cases."""

    sizes: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    seed: int
    peak: float  # operations per second


def cases_of(settings: Mapping[str, Any]) -> list[tuple[Case, dict[str, float | None]]]:
    """Read the training cases of a config with their targets. Raises ValueError for a number that no case has."""
    every, only = settings["training"], settings["only_training"]
    if only is not None and max(only) >= len(every):
        raise ValueError(f"only_training = {only} names case {max(only)}, and they are numbered 0..{len(every) - 1}")
    wanted = [each for number, each in enumerate(every) if only is None or number in only]
    targets = set(SCHEMA) - set(Case._fields)
    return [
        (Case(**{name: each[name] for name in Case._fields}), {name: each[name] for name in targets}) for each in wanted
    ]


def measure(case: Case, setting: Setting, modes: list[str], rate: float) -> dict[str, Any]:
    """Time the steps in turns: a record as `comparison.measure` gives it, with utilisation and the data's share."""
    names = {comparison.TEXTBOOK: None, **{mode: mode for mode in modes if mode in MODES}}
    methods = {name: _method(case, setting, mode) for name, mode in names.items()}
    record = comparison.measure(case, methods, setting.device, rate)  # type: ignore[arg-type]
    load = _loading_seconds(case, setting)
    for method in record["methods"].values():
        if "median" in method:
            method["utilisation"] = step_flops(case, setting.sizes) / method["median"] / setting.peak
            method["loading_share"] = load / method["median"]
    return record


def judge(record: Mapping[str, Any], targets: Mapping[str, float | None]) -> list[Verdict]:
    """Compare a record with its targets: times faster, times less memory, and the share of the device's peak."""
    verdicts = comparison.judge(record, {**targets, "machinery_target": None})
    wanted = targets["utilisation_target"]
    if wanted is not None:
        measured = {name: method for name, method in record["methods"].items() if "utilisation" in method}
        found = {name: method["utilisation"] for name, method in measured.items() if name in MODES}
        verdicts += [Verdict("utilisation", name, share, wanted, share >= wanted) for name, share in found.items()]
    return verdicts


def table(record: Mapping[str, Any]) -> str:
    """Lay out the record for the terminal, with each method's utilisation and the loading's share of a step."""
    lines = [comparison.table(record)]
    for name, method in record["methods"].items():
        if "utilisation" in method:
            used, loading = method["utilisation"], method["loading_share"]
            lines.append(f"  {name}: the model's operations at {used:.1%} of the peak; data {loading:.2%} of a step")
    return "\n".join(lines)


def step_flops(case: Case, sizes: Mapping[str, Any]) -> float:
    """Count the operations a step needs: products alone, gradients twice those of the pass, the head where a mask is.

    Half of the positions are masked, on average over times. Nothing that is computed a second time counts.
    """
    b, l, h = case.rows, case.length, sizes["hidden_size"]
    network = Transformer(3, l, **sizes)
    tokens, masked = torch.zeros(b, l, dtype=torch.int64), torch.zeros(b * l // 2, dtype=torch.int64)
    denoiser = timing.transformer_flops(network, tokens, None, masked) + 2.0 * h * case.vocab_size * len(masked)
    if case.objective == "denoising":
        return 3.0 * denoiser
    combined = case.vocab_size if case.vocab_size <= l else 2 * b * l  # tokens, or positions: see `EnergyNetwork`
    return denoiser + 3.0 * (2 * timing.transformer_flops(network, tokens) + 4.0 * h * h * combined)


def _method(case: Case, setting: Setting, mode: str | None) -> Method:
    """A training step in an execution mode; None: the textbook's."""
    torch.manual_seed(setting.seed)
    denoiser = Transformer(case.vocab_size, case.length, **setting.sizes).to(setting.device)
    trained: nn.Module = denoiser
    if case.objective == "contrast":
        trained = EnergyNetwork(case.vocab_size, case.length, **setting.sizes).to(setting.device)
        denoiser.requires_grad_(False).eval()
    if mode == "compile":
        for network in {denoiser, trained}:
            execution.compile_blocks(network)
    loss = (_textbook_loss if mode is None else _our_loss)(case, setting, denoiser, trained)
    step = _Step(case, setting, trained, loss)

    def several() -> None:
        for _ in range(_WARM_UP_STEPS):
            step()

    return Method(run=step, warm_up=several, observe=None, scale=1.0)


class _Step:
    """Batch, loss, gradients, clipping, AdamW, EMA: the same around either loss."""

    def __init__(self, case: Case, setting: Setting, network: nn.Module, loss: Callable[[Tensor, int], Tensor]) -> None:
        self.case, self.setting, self.network, self.loss = case, setting, network, loss
        self.blocks = _blocks(case)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        self.ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        self.number = 0

    def __call__(self) -> None:
        """One step."""
        half = self.setting.dtype == torch.bfloat16
        x_0 = _load(self.blocks, self.case, self.setting, self.number)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.setting.device.type, dtype=torch.bfloat16, enabled=half):
            loss = self.loss(x_0, self.number).mean() / self.case.length
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.ema.update_parameters(self.network)
        self.number += 1


def _our_loss(
    case: Case, setting: Setting, denoiser: Transformer, trained: nn.Module
) -> Callable[[Tensor, int], Tensor]:
    schedule, subs = schedules.log_linear(), denoisers.subs(denoiser, case.vocab_size - 1)
    stages = denoising.denoising(subs, schedule)
    if case.objective == "contrast":
        stages = contrastive.contrastive(subs, energies.learned(trained), schedule)
    stages.train()

    def loss(x_0: Tensor, number: int) -> Tensor:
        row = torch.arange(case.rows, device=setting.device)
        return stages(batches.training_batch(x_0, setting.seed, row, number, case.rows))[contracts.LOSS]

    return loss


def _textbook_loss(
    case: Case, setting: Setting, denoiser: Transformer, trained: nn.Module
) -> Callable[[Tensor, int], Tensor]:
    generator, mask_id = torch.Generator(setting.device).manual_seed(setting.seed), case.vocab_size - 1

    def loss(x_0: Tensor, number: int) -> Tensor:
        x_t, t = textbook_training.corrupt(x_0, mask_id, generator)
        if case.objective == "denoising":
            return textbook_training.denoising(denoiser, x_0, x_t, t, mask_id)
        assert isinstance(trained, EnergyNetwork)
        drafts = textbook_training.drafts_of(denoiser, x_t, mask_id, generator)
        return textbook_training.contrast(trained, x_0, drafts, x_t)

    return loss


def _blocks(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(case.vocab_size - 1, (_BLOCKS, case.length), generator=generator)


def _load(blocks: Tensor, case: Case, setting: Setting, number: int) -> Tensor:
    batch = pieces.batch_at(blocks, step=number, batch_size=case.rows, seed=setting.seed)
    return batch[contracts.X_0].to(setting.device)


def _loading_seconds(case: Case, setting: Setting) -> float:
    """The middle of some times that a batch takes to be on the device."""
    blocks = _blocks(case)
    times = [timing.seconds(partial(_load, blocks, case, setting, n), setting.device) for n in range(_LOADS)]
    return timing.spread(times).median
