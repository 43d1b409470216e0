"""What training recipes share: the loop around one objective, with EMA, logging, validation, checkpoints and resume.

The noise of a step, the order of the data and the dropout are functions of the seed and the step's number, so a run
that was stopped and resumed is the run that was not, bit for bit.
"""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from edlm import checkpoints, contracts, corpora
from edlm.corpora import Rows
from edlm.recipes import _following, _forecast, _settings
from edlm.recipes._entry import Interrupted
from edlm.recipes._patience import Patience
from edlm.recipes._settings import Schema
from edlm.vocabulary import Vocabulary

SETTINGS: Schema = {
    "steps": _settings.integer(1),
    "batch_size": _settings.integer(1),
    "accumulate": _settings.integer(1),
    "optimizer": _settings.component("params"),
    "warmup_steps": _settings.integer(0),
    "decay": _settings.choice("constant", "cosine"),
    "clip_norm": _settings.number(0, above=True),
    "ema_decay": _settings.number(0, 1),
    "precision": _settings.choice("float32", "bfloat16"),
    "time_low": _settings.number(0, 0.5),
    "log_every": _settings.integer(1),
    "valid_every": _settings.integer(1),
    "valid_rows": _settings.integer(2),
    "save_every": _settings.integer(1),
    "keep_last": _settings.integer(1),
    "patience": _settings.optional(_settings.integer(1)),
    "resume": _settings.flag,
    **_following.SETTINGS,
}
# What may differ when a run is resumed: it changes neither the updates made so far nor those to come.
_FREE_ON_RESUME = {"log_every", "valid_every", "valid_rows", "save_every", "keep_last", "resume", "steps"}
_FREE_ON_RESUME |= set(_following.SETTINGS)

HELD_OUT_STEP = (1 << 32) - 1  # the noise of evaluation is that of a step no training reaches

Metrics = dict[str, float]
Tensors = list[Tensor] | tuple[Tensor, ...]


def device_of(settings: Mapping[str, Any]) -> torch.device:
    """The device a config names. Raises ValueError for cuda where there is none."""
    if settings["threads"] is not None:
        torch.set_num_threads(settings["threads"])
    name = settings["device"]
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device = 'cuda' but no CUDA device is there; use device=cpu")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)


def writable(key: str, value: str) -> Path:
    """The folder a config names, found to be writable before any work is done. Raises ValueError naming the key."""
    folder = Path(value)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise ValueError(f"{key} = {value!r} cannot be written: {existing} is not a folder that can be written to")
    return folder


def keyed(x_0: Tensor, row: Tensor, seed: int, step: int, num_rows: int) -> TensorDict:
    """What a training pipeline reads: tokens (b, l), the rows' numbers (b,) and the keys of their noise."""
    keys = {contracts.SEED: seed, contracts.STEP: step, contracts.NUM_ROWS: num_rows}
    scalars = {name: torch.tensor(value, device=x_0.device) for name, value in keys.items()}
    return TensorDict({contracts.X_0: x_0, contracts.ROW: row, **scalars})


class TrainingRun:
    """One network, one objective, one folder: updates, EMA, log, checkpoints.

    stages: a training pipeline whose `loss` (b,) is averaged and divided by `loss_scale`. validate: called with the
    EMA network. identity: what must be the same when the run is resumed, beside the settings. sample: texts of the
    EMA network, for those who follow the run.
    """

    def __init__(
        self,
        folder: Path,
        network: nn.Module,
        stages: TensorDictModuleBase,
        blocks: Rows,
        vocabulary: Vocabulary,
        settings: Mapping[str, Any],
        seed: int,
        identity: Mapping[str, Any],
        validate: Callable[[nn.Module], Metrics],
        loss_scale: float = 1.0,
        sample: _following.Sample | None = None,
    ) -> None:
        self.folder, self.network, self.stages, self.blocks = folder, network, stages, blocks
        self.vocabulary, self.settings, self.seed, self.validate = vocabulary, settings, seed, validate
        self.identity = {**identity, "seed": seed}
        self.loss_scale, self.sample = loss_scale, sample
        self.device = next(network.parameters()).device
        self.optimizer = _settings.build(settings["optimizer"], params=network.parameters())
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.ema = AveragedModel(network, multi_avg_fn=_warm_average(settings["ema_decay"])).eval()
        self.step = 0
        self.patience = Patience(folder / "best", settings["patience"])
        if settings["patience"] is not None and settings["steps"] % settings["valid_every"]:
            raise ValueError(
                f"steps = {settings['steps']} must be a multiple of valid_every = {settings['valid_every']} where "
                "patience is given: the last validation counts like any other"
            )
        self._stop: int | None = None

    @property
    def average(self) -> nn.Module:
        """The network with its exponentially averaged weights."""
        return self.ema.module

    def load_checkpoint(self) -> None:
        """Continue from the newest checkpoint of the folder, if there is one.

        Raises ValueError if there is one and `resume` is off, or if what it was trained with has changed.
        """
        newest = checkpoints.last_checkpoint(self.folder)
        if newest is None:
            return
        if not self.settings["resume"]:
            raise ValueError(f"{self.folder} holds a run already: set resume=true to go on, or another output_dir")
        state = checkpoints.load_state(newest)
        self._refuse_changes(state)
        self.average.load_state_dict(checkpoints.load_network(newest, self.vocabulary).state_dict())
        self.ema.n_averaged.fill_(state["averaged"])
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.patience.load_state(state.get("patience", {}))
        for name in (_following.METRICS, _following.SAMPLES):
            _cut_log(self.folder / name, self.step)

    def train(self) -> None:
        """Run the remaining steps. Raises ValueError when the loss is not finite, Interrupted after a signal."""
        if self._finished():
            self.patience.restore(self.average)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        previous = {number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        self.stages.train()
        try:
            with _forecast.advice(self.settings, self.blocks.shape[1]):
                found = _forecast.forecast(self.network, self.stages, self.optimizer, self._some_loss, self.settings)
                print(_forecast.table(found, self.settings, self.blocks.shape[1], self.step), flush=True)
                self._loop()
        finally:
            self.stages.eval()
            _following.draw_curves(self.folder)
            for number, handler in previous.items():
                signal.signal(number, handler)
        self.patience.restore(self.average)

    def save_checkpoint(self) -> None:
        """Write the EMA network and the state of training."""
        state = {
            "step": self.step,
            "averaged": int(self.ema.n_averaged),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "settings": dict(self.settings),
            "identity": self.identity,
            "patience": self.patience.state(),
        }
        checkpoints.save_checkpoint(
            self.folder, self.step, self.average, self.vocabulary, self._notes(), state, self.settings["keep_last"]
        )

    def _finished(self) -> bool:
        return self.step >= self.settings["steps"] or self.patience.exhausted

    def _notes(self) -> dict[str, Any]:
        return {"weights": f"EMA {self.settings['ema_decay']}", **self.identity}

    def _save_best(self, folder: Path) -> None:
        checkpoints.save_network(folder, self.average, self.vocabulary, {**self._notes(), "step": self.step})

    def _loop(self) -> None:
        settings = self.settings
        bar = tqdm(total=settings["steps"], initial=self.step, unit="step", desc=self.folder.name, mininterval=1.0)
        losses: list[float] = []
        started, tokens = time.monotonic(), 0
        with bar, _following.Log(self.folder, settings["log_to"]) as log:
            while not self._finished():
                losses.append(self._update())
                tokens += settings["batch_size"] * self.blocks.shape[1]
                bar.update()
                rate = tokens / (time.monotonic() - started)
                bar.set_postfix_str(f"loss {losses[-1]:.3f}, {rate:,.0f} tokens/s", refresh=False)
                record: dict[str, Any] = {}
                if self.step % settings["log_every"] == 0 or self.step == settings["steps"]:
                    record = {"loss": math.fsum(losses) / len(losses), "lr": self._rate(), "tokens_per_s": round(rate)}
                    losses.clear()
                if self.step % settings["valid_every"] == 0 or self.step == settings["steps"]:
                    metrics = self.validate(self.average)  # the held-out loss comes first
                    self.patience.note(self.step, next(iter(metrics.values())), self._save_best)
                    record |= {f"valid_{name}": value for name, value in metrics.items()}
                log.write(self.step, record)
                if settings["sample_every"] and self.step % settings["sample_every"] == 0 and self.sample is not None:
                    log.show(self.step, self.sample(self.average))
                if self.step % settings["save_every"] == 0 or self._finished() or self._stop:
                    self.save_checkpoint()
                if self._stop and self.step < settings["steps"]:
                    message = f"stopped at step {self.step}; the same command goes on from {self.folder}"
                    raise Interrupted(message, 128 + self._stop)

    def _update(self) -> float:
        """One optimiser step over one batch, in `accumulate` parts; returns its mean loss."""
        settings = self.settings
        torch.manual_seed(self.seed * 1_000_003 + self.step)  # dropout, the one consumer of the global generator
        chosen = corpora.batch_at(self.blocks, step=self.step, batch_size=settings["batch_size"], seed=self.seed)
        batch = chosen[contracts.X_0].to(self.device)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * self._rate_factor()
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        rows = torch.arange(len(batch), device=self.device)
        for part in rows.tensor_split(settings["accumulate"]):
            if part.numel():
                loss = self._loss(batch[part], part, len(batch))
                loss.backward()
                total += float(loss.detach())
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), settings["clip_norm"]))
        if not (math.isfinite(total) and math.isfinite(norm)):
            kept = checkpoints.last_checkpoint(self.folder)
            kept_line = "no checkpoint was written yet" if kept is None else f"the last good checkpoint is {kept}"
            raise ValueError(f"loss {total} with gradient norm {norm} at step {self.step}: stopped; {kept_line}")
        self.optimizer.step()
        self.ema.update_parameters(self.network)
        self.step += 1
        return total

    def _loss(self, x_0: Tensor, row: Tensor, num_rows: int) -> Tensor:
        """This part's share of the batch's mean loss."""
        half = self.settings["precision"] == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            out = self.stages(keyed(x_0, row, self.seed, self.step, num_rows))
        return out[contracts.LOSS].sum() / (num_rows * self.loss_scale)

    def _some_loss(self, rows: int) -> Tensor:
        """The loss of a small batch, for a forecast."""
        x_0 = corpora.batch_at(self.blocks, step=self.step, batch_size=rows, seed=self.seed)[contracts.X_0]
        return self._loss(x_0.to(self.device), torch.arange(rows, device=self.device), rows)

    def _rate_factor(self) -> float:
        """Linear warm-up, then constant or a half cosine to zero at the last step."""
        warmup, steps = self.settings["warmup_steps"], self.settings["steps"]
        if self.step < warmup:
            return (self.step + 1) / warmup
        if self.settings["decay"] == "constant":
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * (self.step - warmup) / max(1, steps - warmup)))

    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stop is not None:  # asked twice: do not wait for the step to end
            raise KeyboardInterrupt
        self._stop = number

    def _refuse_changes(self, state: Mapping[str, Any]) -> None:
        free = _FREE_ON_RESUME - ({"steps"} if self.settings["decay"] == "cosine" else set())
        if self.settings["patience"] is not None:
            free -= {"valid_every", "valid_rows"}  # they decide when it stops
        before = {**state["settings"], **state["identity"]}
        now = {**self.settings, **self.identity}
        changed = [
            f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if key not in free and before.get(key) != now.get(key)
        ]
        if changed:
            raise ValueError(f"cannot resume {self.folder}: {'; '.join(changed)}; use another output_dir")


def _warm_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """EMA whose decay grows as (1 + n) / (10 + n) up to `decay`, so that a short run forgets its start."""

    @torch.no_grad()
    def update(averages: Tensors, current: Tensors, count: Tensor | int) -> None:
        n = int(count)
        torch._foreach_lerp_(averages, current, 1.0 - min(decay, (1 + n) / (10 + n)))

    return update


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines of steps that will be done again."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
