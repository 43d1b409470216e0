"""The shared loop of training recipes around one objective, with EMA, logging, validation, checkpoints and resume.

The noise of a step, the order of the data and the dropout are functions of the seed and the step's number, so a run
that was stopped and resumed is the run that was not, bit for bit.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from edlm import contracts
from edlm.data import pieces
from edlm.data.pieces import Rows
from edlm.data.vocabulary import Vocabulary
from edlm.likelihood import nelbo
from edlm.nn import networks
from edlm.objectives import batches
from edlm.process import arguments
from edlm.runs import processes as distributed
from edlm.runs import settings as schemas
from edlm.runs.entry import Interrupted
from edlm.samplers import execution
from edlm.training import forecast, log_check, muon, rates, resume
from edlm.training import log as following
from edlm.training import settings as _settings
from edlm.training import state as _state
from edlm.training.patience import Patience
from edlm.training.sharding import Weights
from edlm.training.stopping import Stopping
from edlm.weights import checkpoints
from edlm.weights.formats import Format

Metrics = dict[str, float]


class TrainingRun:
    """Trains one network by one objective in one folder: updates, EMA, log, checkpoints.

    stages: a training pipeline whose `loss` (b,) is averaged over the batch, over its rows or, `per_token`, over its
    tokens, padding left out. validate: called with the EMA network; the first of its figures, if any, is the held-out
    loss. identity: what must be the same when the run is resumed, beside the settings. sample: texts of the EMA
    network, for those who follow the run. rate_of: the share of the learning rate that a parameter, by its name, trains
    at. form: how a checkpoint keeps the EMA network. Of several processes each takes its rows of every batch, and the
    first one writes. Raises ValueError where some would have none.
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
        per_token: bool = False,
        sample: following.Sample | None = None,
        rate_of: Callable[[str], float] = lambda name: 1.0,
        form: Format = checkpoints.OWN,
    ) -> None:
        self.folder, self.network, self.stages, self.blocks = folder, network, stages, blocks
        self.vocabulary, self.settings, self.seed, self.validate = vocabulary, settings, seed, validate
        self.identity = {**identity, "seed": seed}
        self.per_token, self.sample, self.form = per_token, sample, form
        self.device = next(network.parameters()).device
        _settings.check(settings, blocks.shape[1])
        self.weights = Weights(network, settings["parallel"], settings["precision"])  # its average is eager
        if settings["compile"]:
            execution.compile_blocks(network)
        if settings["recompute"]:  # around what is compiled, in which it could not be seen
            networks.recompute(network)
        mark = muon.marks(settings["optimizer"], network)
        groups = self.weights.grouped(lambda name: (rate_of(name), mark(name)))
        marked = [{"params": own, **dict(marks)} for (_, marks), own in groups]
        self.optimizer = schemas.build(settings["optimizer"], "optimizer", params=iter(marked))
        shares = zip(self.optimizer.param_groups, groups, strict=True)
        self.base_rates = [group["lr"] * share for group, ((share, _), _) in shares]
        self.step, self.began = 0, 0  # began: the step at which the present rise and fall of the rate began
        self.patience, self.stopping = Patience(settings["patience"]), Stopping()
        self._num_tokens = 0  # of the last batch, padding left out
        self._losses: list[float] = []  # of the steps since the last line of the log

    @property
    def average(self) -> nn.Module:
        """The network with its exponentially averaged weights."""
        return self.weights.average

    def load_checkpoint(self) -> None:
        """Continue from the newest checkpoint of the folder, if there is one.

        Raises ValueError if there is one and `resume` is off, or if what it was trained with has changed.
        """
        newest = distributed.from_first(lambda: checkpoints.last_checkpoint(self.folder))
        if newest is None:
            how = self.folder, self.settings["resume"], self.settings["save_every"]
            distributed.from_first(lambda: log_check.begin(*how))
            return
        if not self.settings["resume"]:
            raise ValueError(f"{self.folder} holds a run already: set resume=true to go on, or another output_dir")
        distributed.from_first(lambda: checkpoints.best_checkpoint(self.folder))  # else a save would find it damaged
        state = _state.load(newest)
        resume.require_unchanged(self.folder, state, self._kept_settings(), self.identity)
        held, frozen = self.form.read(newest, self.vocabulary), self.weights.frozen()
        average, shapes = {name: held[name] for name in held if name not in frozen}, self.weights.shapes()
        _state.require_weights(newest, "network", state["network"], shapes)
        _state.require_weights(newest, "average", average, shapes)
        _state.require_optimizer(newest, state["optimizer"], self.optimizer)
        logged = self.folder, state["log"], state["step"], self.settings["resume"]
        distributed.from_first(lambda: log_check.go_on(*logged))
        self._go_on(state, average)

    def train(self) -> None:
        """Run the remaining steps. Raises ValueError when the loss is not finite, Interrupted after a signal."""
        if not self._finished():
            arguments.require_folder(self.folder)
            with self.stopping, forecast.advice(self.settings, self.blocks.shape[1]):
                try:
                    self.stages.train()
                    self._forecast()
                    self._loop()
                finally:
                    self.stages.eval()
                    self._draw_curves()
        elif not following.curves_are_drawn(self.folder):  # perhaps killed before
            self._draw_curves()
        self._restore_best()

    def save_checkpoint(self) -> None:
        """Write the EMA network and the state of training. Raises ValueError for weights that are not finite."""
        if distributed.total([float(not self.weights.finite())], self.device)[0]:
            raise self._not_finite("weights that are not finite")
        state = {
            "step": self.step,
            "began": self.began,
            "averaged": self.weights.count,
            "network": self.weights.state(),
            "optimizer": self.weights.optimizer_state(self.optimizer),
            "settings": self._kept_settings(),
            "identity": self.identity,
            "best": self.patience.state(),
            "losses": self._losses,
        }
        notes = {"weights": f"EMA {self.settings['ema_decay']}", **self.identity}
        saved = (self.folder, self.step, self.average, self.vocabulary, notes)
        best = self.patience.best if self._keeps_best else None

        def save() -> None:
            with_log = {**state, "log": log_check.written(self.folder)}
            checkpoints.save_checkpoint(*saved, with_log, self.settings["keep_last"], best, self.form)

        distributed.from_first(save)

    def _loop(self) -> None:
        """Update, log and save until the last step, or the step after which all processes were asked to stop."""
        shown = {"initial": self.step, "unit": "step", "desc": self.folder.name, "mininterval": 1.0}
        bar = distributed.bar(total=self.settings["steps"], **shown)
        started, tokens = time.monotonic(), 0
        with bar, following.Log(self.folder, self.settings["log_to"]) as log:
            while not self._finished():
                self._losses.append(self._update())
                tokens += self._num_tokens
                rate = tokens / (time.monotonic() - started)
                bar.update()
                bar.set_postfix_str(f"loss {self._losses[-1]:.3f}, {rate:,.0f} tokens/s", refresh=False)
                is_best = self._write_figures(log, rate)
                self._show_texts(log)
                if self._due("save_every") or self._finished() or is_best or self.stopping.agreed:
                    log.flush()  # no checkpoint is further than the log
                    self.save_checkpoint()
                if self.stopping.agreed and not self._finished():
                    message = f"stopped at step {self.step}; the same command goes on from {self.folder}"
                    raise Interrupted(message, 128 + self.stopping.agreed)

    def _update(self) -> float:
        """Take one optimiser step over one batch, in `accumulate` parts; returns its mean loss."""
        settings = self.settings
        # Dropout, the one consumer of the global generator; every process has its own.
        torch.manual_seed((self.seed * 1_000_003 + self.step + (distributed.rank() << 48)) % 2**64)
        chosen = pieces.batch_at(self.blocks, step=self.step, batch_size=settings["batch_size"], seed=self.seed)
        batch = chosen[contracts.X_0]
        self._num_tokens = int(nelbo.not_padding(batch, self.vocabulary.pad_id).sum())
        self._set_rates()
        self.optimizer.zero_grad(set_to_none=True)
        own = 0.0
        for part in distributed.rows_of_rank(torch.arange(len(batch))).tensor_split(settings["accumulate"]):
            loss = self._loss(batch[part].to(self.device), part.to(self.device), len(batch), self._num_tokens)
            loss.backward()
            own += float(loss.detach())
        total, *votes = distributed.total([own, *self.stopping.votes()], self.device)
        self.stopping.agree(votes)
        self.weights.collect_gradients()
        norm = self.weights.clip(settings["clip_norm"])
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise self._not_finite(f"loss {total} with gradient norm {norm}")
        self.optimizer.step()
        self.weights.stepped(settings["ema_decay"])
        self.step += 1
        return total

    def _loss(self, x_0: Tensor, row: Tensor, num_rows: int, num_tokens: int) -> Tensor:
        """Give this part's share of the mean loss of a batch of so many rows and tokens, whoever has the others."""
        half = self.settings["precision"] == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            out = self.stages(batches.training_batch(x_0, self.seed, row, self.step, num_rows, num_tokens))
        return out[contracts.LOSS].sum() / (num_tokens if self.per_token else num_rows)

    def _set_rates(self) -> None:
        plan = self.settings
        steps = self.step - self.began, plan["steps"] - self.began
        factor = rates.factor(*steps, plan["warmup_steps"], plan["decay"])
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor

    def _write_figures(self, log: following.Log, tokens_per_s: float) -> bool:
        """Log the mean loss and the held-out figures where they are due; whether the network is the best to keep."""
        record: dict[str, Any] = {}
        if self._due("log_every"):
            rate = max(float(group["lr"]) for group in self.optimizer.param_groups)
            record["loss"] = math.fsum(self._losses) / len(self._losses)
            record |= {"lr": rate, "tokens_per_s": round(tokens_per_s)}
            self._losses.clear()
        is_best = False
        if self._due("valid_every"):
            figures = self.validate(self.average)
            record |= {f"valid_{name}": value for name, value in figures.items()}
            is_best = self.patience.note(self.step, next(iter(figures.values()), math.nan)) and self._keeps_best
        log.write(self.step, record)
        return is_best

    def _show_texts(self, log: following.Log) -> None:
        every = self.settings["sample_every"]
        if every and self.step % every == 0 and self.sample is not None:
            log.show(self.step, self.sample(self.average))

    def _draw_curves(self) -> None:
        if distributed.is_first():
            following.draw_curves(self.folder)

    def _forecast(self) -> None:
        """Say what the run will need, from a small step that leaves nothing behind."""
        found = forecast.forecast(self.network, self.stages, self.optimizer, self._some_loss, self.settings)
        print(forecast.table(found, self.settings, self.blocks.shape[1], self.step), flush=True)

    def _some_loss(self, rows: int) -> Tensor:
        """Give the loss of a small batch, for a forecast."""
        x_0 = pieces.batch_at(self.blocks, step=self.step, batch_size=rows, seed=self.seed)[contracts.X_0]
        return self._loss(x_0.to(self.device), torch.arange(rows, device=self.device), rows, x_0.numel())

    def _go_on(self, state: Mapping[str, Any], average: Mapping[str, Tensor]) -> None:
        """Take up a state that was checked, and averaged weights."""
        self.weights.load(state["network"], average, state["averaged"])
        self.weights.load_optimizer(self.optimizer, state["optimizer"])
        self.step, self.began = state["step"], resume.beginning(state, self.settings)
        self.patience.load_state(state["best"])
        self._losses = list(state["losses"])

    def _restore_best(self) -> None:
        """Put the best network in the last one's place in what is reported, where patience is given."""
        best, folder = self.patience.best, checkpoints.best_checkpoint(self.folder)
        if self.settings["patience"] is None or folder is None or best is None:
            return
        self.average.load_state_dict(self.form.read(folder, self.vocabulary), strict=False)  # one of each tied pair
        print(f"held-out loss was least at step {best['step']}: {best['loss']:.5f}; that network is {folder}")

    @property
    def _keeps_best(self) -> bool:
        return self.settings["keep_best"] or self.settings["patience"] is not None

    def _finished(self) -> bool:
        return self.step >= self.settings["steps"] or self.patience.exhausted

    def _due(self, key: str) -> bool:
        return self.step % self.settings[key] == 0 or self.step == self.settings["steps"]

    def _kept_settings(self) -> dict[str, Any]:
        return {**self.settings, "processes": distributed.world()}

    def _not_finite(self, what: str) -> ValueError:
        kept = checkpoints.last_checkpoint(self.folder)
        good = "no checkpoint was written yet" if kept is None else f"the last good checkpoint is {kept}"
        return ValueError(f"{what} at step {self.step}: stopped; {good}")
