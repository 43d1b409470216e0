"""What training recipes share: the loop around one objective, with EMA, logging, validation, checkpoints and resume.

The noise of a step, the order of the data and the dropout are functions of the seed and the step's number, so a run
that was stopped and resumed is the run that was not, bit for bit.
"""

import math
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

from edlm import contracts
from edlm.data import corpora
from edlm.data.corpora import Rows
from edlm.data.vocabulary import Vocabulary
from edlm.likelihood import nelbo
from edlm.nn import networks
from edlm.runs import processes as distributed
from edlm.runs import settings as schemas
from edlm.runs.entry import Interrupted
from edlm.runs.settings import Schema
from edlm.samplers import execution
from edlm.training import forecast, log_check
from edlm.training import log as following
from edlm.training import state as _state
from edlm.training.patience import Patience
from edlm.training.sharding import PURE, Weights
from edlm.weights import checkpoints


def _optimizer(key: str, value: Any) -> None:
    """A component; what a class of torch.optim refuses of its values is said before anything is trained.

    No other is called before the run: a config is checked without running what it names.
    """
    schemas.component("params")(key, value)
    home, _, name = value["_component_"].rpartition(".")
    if home != "torch.optim" or not isinstance(getattr(torch.optim, name), type):
        return
    try:
        weight = torch.zeros(1, requires_grad=True)
        optimizer = schemas.build(value, "optimizer", params=iter([weight]))
        weight.sum().backward()
        optimizer.step()
    except (ValueError, TypeError, RuntimeError) as error:  # some want a closure, or gradients of another kind
        raise ValueError(f"{key}: {error}") from error


SETTINGS: Schema = {
    "steps": schemas.integer(1),
    "batch_size": schemas.integer(1),
    "accumulate": schemas.integer(1),
    "optimizer": _optimizer,
    "warmup_steps": schemas.integer(0),
    "decay": schemas.choice("constant", "cosine"),
    "clip_norm": schemas.number(0, above=True),
    "ema_decay": schemas.number(0, 1),
    "precision": schemas.choice("float32", "bfloat16", PURE),
    "parallel": schemas.choice("data", "sharded"),
    "recompute": schemas.flag,
    "compile": schemas.flag,
    "time_low": schemas.number(0, 0.5),
    "log_every": schemas.integer(1),
    "valid_every": schemas.integer(1),
    "valid_rows": schemas.integer(2),
    "save_every": schemas.integer(1),
    "keep_last": schemas.integer(1),
    "keep_best": schemas.flag,
    "patience": schemas.optional(schemas.integer(1)),
    "resume": log_check.resume,
    **following.SETTINGS,
}
# What may differ when a run is resumed: it changes no update, but for rounding.
_FREE_ON_RESUME = {
    *("log_every", "valid_every", "valid_rows", "save_every", "keep_last", "keep_best", "resume", "steps"),
    *("accumulate", "parallel", "recompute", "compile", "processes", *following.SETTINGS),
}
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_IMPATIENT = 1.0  # seconds: a signal that comes twice within is one signal, sent to a process and to its group

HELD_OUT_STEP = (1 << 32) - 1  # the noise of evaluation is that of a step no training reaches

Metrics = dict[str, float]


def keyed(x_0: Tensor, row: Tensor, seed: int, step: int, num_rows: int, num_tokens: int | None = None) -> TensorDict:
    """What a training pipeline reads: tokens (b, l), the rows' numbers (b,) and the keys of their noise.

    num_rows, num_tokens: of the whole batch, of which these rows may be a part; None: no token of it is padding.
    """
    count = num_rows * x_0.shape[1] if num_tokens is None else num_tokens
    keys = {contracts.SEED: seed, contracts.STEP: step, contracts.NUM_ROWS: num_rows, contracts.NUM_TOKENS: count}
    scalars = {name: torch.tensor(value, device=x_0.device) for name, value in keys.items()}
    return TensorDict({contracts.X_0: x_0, contracts.ROW: row, **scalars})


class SettingsChanged(ValueError):
    """A run cannot go on, and what to do about it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what = what


class TrainingRun:
    """One network, one objective, one folder: updates, EMA, log, checkpoints.

    stages: a training pipeline whose `loss` (b,) is averaged over the batch, over its rows or, `per_token`, over its
    tokens, padding left out. validate: called with the
    EMA network; the first of its figures, if any, is the held-out loss. identity: what must be the same when the run is
    resumed, beside the settings. sample: texts of the EMA network, for those who follow the run. rate_of: the share of
    the learning rate that a parameter, by its name, trains at. Of several processes each takes its rows of every batch,
    and the first one writes. Raises ValueError where some would have none.
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
    ) -> None:
        self.folder, self.network, self.stages, self.blocks = folder, network, stages, blocks
        self.vocabulary, self.settings, self.seed, self.validate = vocabulary, settings, seed, validate
        self.identity = {**identity, "seed": seed}
        self.per_token, self.sample = per_token, sample
        self.device = next(network.parameters()).device
        _require_rows(settings)
        _require_validation_at_the_end(settings)
        self.weights = Weights(network, settings["parallel"], settings["precision"])  # its average is eager
        if settings["compile"]:
            execution.compile_blocks(network)
        if settings["recompute"]:  # around what is compiled, in which it could not be seen
            networks.recompute(network)
        groups = self.weights.grouped(rate_of)
        self.optimizer = schemas.build(
            settings["optimizer"], "optimizer", params=iter([{"params": own} for _, own in groups])
        )
        rates = zip(self.optimizer.param_groups, groups, strict=True)
        self.base_rates = [group["lr"] * share for group, (share, _) in rates]
        self.step = 0
        self.patience = Patience(settings["patience"])
        self._num_tokens = 0  # of the last batch, padding left out
        self._losses: list[float] = []  # of the steps since the last line of the log
        self._asked: tuple[int, float] | None = None  # the signal that came, and when
        self._stop: int | None = None  # the signal on which all processes agree

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
        self._refuse_changes(state)
        average = checkpoints.load_network(newest, self.vocabulary).state_dict()
        shapes = self.weights.shapes()
        _state.require_weights(newest, "network", state["network"], shapes)
        _state.require_weights(newest, "average", average, shapes)
        _state.require_optimizer(newest, state["optimizer"], self.optimizer)
        logged = self.folder, state["log"], state["step"], self.settings["resume"]
        distributed.from_first(lambda: log_check.go_on(*logged))
        self.weights.load(state["network"], average, state["averaged"])
        self.weights.load_optimizer(self.optimizer, state["optimizer"])
        self.step = state["step"]
        self.patience.load_state(state["best"])
        self._losses = list(state["losses"])

    def train(self) -> None:
        """Run the remaining steps. Raises ValueError when the loss is not finite, Interrupted after a signal."""
        if self._finished():  # perhaps killed before its picture was drawn
            if distributed.is_first() and not following.curves_are_drawn(self.folder):
                following.draw_curves(self.folder)
            self._restore_best()
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        previous = {number: signal.signal(number, self._ask_to_stop) for number in _SIGNALS}
        self.stages.train()
        try:
            with forecast.advice(self.settings, self.blocks.shape[1]):
                found = forecast.forecast(self.network, self.stages, self.optimizer, self._some_loss, self.settings)
                print(forecast.table(found, self.settings, self.blocks.shape[1], self.step), flush=True)
                self._loop()
        finally:
            self.stages.eval()
            if distributed.is_first():
                following.draw_curves(self.folder)
            for number, handler in previous.items():
                signal.signal(number, handler)
        self._restore_best()

    def save_checkpoint(self) -> None:
        """Write the EMA network and the state of training. Raises ValueError for weights that are not finite."""
        if distributed.total([float(not self.weights.finite())], self.device)[0]:
            raise self._not_finite("weights that are not finite")
        state = {
            "step": self.step,
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
            checkpoints.save_checkpoint(*saved, with_log, self.settings["keep_last"], best)

        distributed.from_first(save)

    @property
    def _keeps_best(self) -> bool:
        return self.settings["keep_best"] or self.settings["patience"] is not None

    def _finished(self) -> bool:
        return self.step >= self.settings["steps"] or self.patience.exhausted

    def _restore_best(self) -> None:
        """Where patience is given, the best network takes the last one's place in what is reported."""
        best, folder = self.patience.best, checkpoints.best_checkpoint(self.folder)
        if self.settings["patience"] is None or folder is None or best is None:
            return
        self.average.load_state_dict(checkpoints.load_network(folder).state_dict())
        print(f"held-out loss was least at step {best['step']}: {best['loss']:.5f}; that network is {folder}")

    def _loop(self) -> None:
        settings = self.settings
        shown = {"initial": self.step, "unit": "step", "desc": self.folder.name, "mininterval": 1.0}
        bar, losses = distributed.bar(total=settings["steps"], **shown), self._losses
        started, tokens = time.monotonic(), 0
        with bar, following.Log(self.folder, settings["log_to"]) as log:
            while not self._finished():
                losses.append(self._update())
                tokens += self._num_tokens
                bar.update()
                rate = tokens / (time.monotonic() - started)
                bar.set_postfix_str(f"loss {losses[-1]:.3f}, {rate:,.0f} tokens/s", refresh=False)
                record: dict[str, Any] = {}
                if self._due("log_every"):
                    record = {"loss": math.fsum(losses) / len(losses), "lr": self._rate(), "tokens_per_s": round(rate)}
                    losses.clear()
                is_best = False
                if self._due("valid_every"):
                    figures = self.validate(self.average)
                    record |= {f"valid_{name}": value for name, value in figures.items()}
                    loss = next(iter(figures.values()), math.nan)
                    is_best = self.patience.note(self.step, loss) and self._keeps_best
                log.write(self.step, record)
                if settings["sample_every"] and self.step % settings["sample_every"] == 0 and self.sample is not None:
                    log.show(self.step, self.sample(self.average))
                if self._due("save_every") or self._finished() or is_best or self._stop:
                    log.flush()  # no checkpoint is further than the log
                    self.save_checkpoint()
                if self._stop and not self._finished():
                    message = f"stopped at step {self.step}; the same command goes on from {self.folder}"
                    raise Interrupted(message, 128 + self._stop)

    def _due(self, key: str) -> bool:
        return self.step % self.settings[key] == 0 or self.step == self.settings["steps"]

    def _update(self) -> float:
        """One optimiser step over one batch, in `accumulate` parts; returns its mean loss."""
        settings = self.settings
        # Dropout, the one consumer of the global generator; every process has its own.
        torch.manual_seed((self.seed * 1_000_003 + self.step + (distributed.rank() << 48)) % 2**64)
        chosen = corpora.batch_at(self.blocks, step=self.step, batch_size=settings["batch_size"], seed=self.seed)
        batch = chosen[contracts.X_0]
        self._num_tokens = int(nelbo.not_padding(batch, self.vocabulary.pad_id).sum())
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * self._rate_factor()
        self.optimizer.zero_grad(set_to_none=True)
        own = 0.0
        for part in distributed.rows_of_rank(torch.arange(len(batch))).tensor_split(settings["accumulate"]):
            loss = self._loss(batch[part].to(self.device), part.to(self.device), len(batch), self._num_tokens)
            loss.backward()
            own += float(loss.detach())
        total = self._agree(own)
        self.weights.collect_gradients()
        norm = self.weights.clip(settings["clip_norm"])
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise self._not_finite(f"loss {total} with gradient norm {norm}")
        self.optimizer.step()
        self.weights.stepped(settings["ema_decay"])
        self.step += 1
        return total

    def _not_finite(self, what: str) -> ValueError:
        kept = checkpoints.last_checkpoint(self.folder)
        good = "no checkpoint was written yet" if kept is None else f"the last good checkpoint is {kept}"
        return ValueError(f"{what} at step {self.step}: stopped; {good}")

    def _agree(self, own: float) -> float:
        """The sum of the processes' losses; and all stop after this step if one was asked to."""
        asked = [float(self._asked is not None and self._asked[0] == number) for number in _SIGNALS]
        total, *votes = distributed.total([own, *asked], self.device)
        self._stop = next((number for number, count in zip(_SIGNALS, votes, strict=True) if count), None)
        return total

    def _loss(self, x_0: Tensor, row: Tensor, num_rows: int, num_tokens: int) -> Tensor:
        """This part's share of the mean loss of a batch of so many rows and tokens, whoever has the others."""
        half = self.settings["precision"] == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            out = self.stages(keyed(x_0, row, self.seed, self.step, num_rows, num_tokens))
        return out[contracts.LOSS].sum() / (num_tokens if self.per_token else num_rows)

    def _some_loss(self, rows: int) -> Tensor:
        """The loss of a small batch, for a forecast."""
        x_0 = corpora.batch_at(self.blocks, step=self.step, batch_size=rows, seed=self.seed)[contracts.X_0]
        return self._loss(x_0.to(self.device), torch.arange(rows, device=self.device), rows, x_0.numel())

    def _rate_factor(self) -> float:
        """Linear warm-up, then constant or a half cosine to zero at the last step."""
        warmup, steps = self.settings["warmup_steps"], self.settings["steps"]
        if self.step < warmup:
            return (self.step + 1) / warmup
        if self.settings["decay"] == "constant":
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * (self.step - warmup) / max(1, steps - warmup)))

    def _rate(self) -> float:
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked is not None and now - self._asked[1] > _IMPATIENT:  # do not wait for the step to end
            raise KeyboardInterrupt
        self._asked = self._asked or (number, now)

    def _kept_settings(self) -> dict[str, Any]:
        return {**self.settings, "processes": distributed.world()}

    def _refuse_changes(self, state: Mapping[str, Any]) -> None:
        free = _FREE_ON_RESUME - ({"steps"} if self.settings["decay"] == "cosine" else set())
        if self.settings["patience"] is not None:
            free -= {"valid_every", "valid_rows"}  # they decide when it stops
        before = {**state["settings"], **state["identity"]}
        now = {**self._kept_settings(), **self.identity}
        changed = {
            key: f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        }
        refused = [said for key, said in changed.items() if key not in free]
        if refused:
            raise SettingsChanged(f"cannot resume {self.folder}: {'; '.join(refused)}", "use another output_dir")
        known = [said for key, said in changed.items() if key in before]
        if known:
            print(f"{self.folder} goes on at step {state['step']}: {'; '.join(known)}", flush=True)


def _require_validation_at_the_end(settings: Mapping[str, Any]) -> None:
    """Raise ValueError unless, with patience, the last validation counts like any other."""
    if settings["patience"] is not None and settings["steps"] % settings["valid_every"]:
        raise ValueError(
            f"steps = {settings['steps']} must be a multiple of valid_every = {settings['valid_every']} where "
            "patience is given: the last validation counts like any other"
        )


def _require_rows(settings: Mapping[str, Any]) -> None:
    """Raise ValueError unless every part of every process' share of a batch has a row."""
    processes, parts = distributed.world(), settings["accumulate"]
    if settings["batch_size"] < processes * parts:
        among = f"{processes} processes x " if processes > 1 else ""
        raise ValueError(f"batch_size = {settings['batch_size']} must be at least {among}accumulate = {parts}")
