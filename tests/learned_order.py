"""Train a denoiser with a learned order of masking (LoMDM, arXiv 2602.02112), and measure its bound.

    python tests/learned_order.py FOLDER runs/order.jsonl --spread 0.93 --seed 0

FOLDER holds english27. The network, the texts and the steps are those of `published` in the config `english27` of
`speedrun`. Each text is masked twice in a step, so a batch holds half as many texts. With `--spread 0` the order is
not learned, and the rest is the same.

A token i of a text is masked at time t with probability `t^g_i`, `g_i = 1 + spread * sigmoid(...)` from a small network
that reads the clean text. The denoiser estimates `g_i` from the masked text. With `p` the denoiser's law and `h` its
estimate, the bound of a text in nats is the mean over t, uniform in (0, 1), of the sum over its masks of

    (1/t) (-g_i log p_i(x_i) + g_i log(g_i / h_i) - g_i + h_i)

The order is trained through the masks too, by the difference of a text's two losses (leave one out).
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from edlm.cli import commands
from edlm.data import pieces
from edlm.evaluation import draws
from edlm.likelihood.estimates import Estimate
from edlm.models import denoisers
from edlm.nn.networks import Transformer
from edlm.process import noise, training_times
from edlm.process.noise import Stream
from edlm.recipes.pretrain_denoiser import PretrainDenoiser
from edlm.training import rates, speedrun

MASKINGS = 2  # of a text in a step
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_layers": 1,
    "num_heads": 2,
    "conditioning_size": 0,
}  # the network of the order
SCORED = 2048  # draws of the test text
EVALUATION = 2**31  # the step that noise of the evaluation has


class Ordered(nn.Module):
    """A denoiser that estimates how early its masks were masked, and the network that decides it."""

    def __init__(self, network: Transformer, mask_id: int, spread: float) -> None:
        super().__init__()
        self.network, self.mask_id, self.spread = network, mask_id, spread
        self.denoiser = denoisers.subs(network, mask_id)
        sizes = network.arguments
        self.order = Transformer(sizes["vocab_size"], sizes["max_length"], **SMALL)
        self.early, self.estimate = nn.Linear(SMALL["hidden_size"], 1), nn.Linear(sizes["hidden_size"], 1)
        for layer in (self.early, self.estimate):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def exponents(self, x_0: Tensor) -> Tensor:
        """Decide the exponents of a text: (b, l) in (1, 1 + spread). Masking all of it earlier is no order."""
        early = self.early(self.order(x_0)).squeeze(-1)
        return 1.0 + self.spread * (early - early.mean(-1, keepdim=True)).sigmoid()

    def loss(self, x_0: Tensor, masked: Tensor, exponents: Tensor, t: Tensor) -> Tensor:
        """Compute the bound of one masking of each text, times the density of t: nats (b,)."""
        positions = masked.flatten().nonzero().squeeze(-1)
        hidden = self.network(torch.where(masked, self.mask_id, x_0), positions=positions)
        log_p = self.denoiser.token_log_prob(hidden, x_0.flatten()[positions])
        estimated = 1.0 + self.spread * self.estimate(hidden).squeeze(-1).sigmoid()
        of_mask = at_a_mask(log_p, exponents.flatten()[positions], estimated)
        return of_mask.new_zeros(masked.numel()).index_copy(0, positions, of_mask).view_as(masked).sum(-1) / t


def at_a_mask(log_p: Tensor, exponent: Tensor, estimated: Tensor) -> Tensor:
    """Compute what a mask adds to the bound, times t, from its token's log-probability: nats."""
    return exponent * (-log_p + (exponent / estimated).log() - 1.0) + estimated


def log_chance(masked: Tensor, exponents: Tensor, t: Tensor) -> Tensor:
    """Compute the log-probability of the masks (b, l) of a text at its time (b,): nats (b,)."""
    of_mask = exponents * t.log().unsqueeze(-1)
    return torch.where(masked, of_mask, torch.log1p(-of_mask.exp().clamp(max=1.0 - 1e-7))).sum(-1)


def surrogate(losses: Tensor, chances: Tensor) -> Tensor:
    """Give what has the gradient of the mean loss: losses and log-probabilities of masks, (2, b) each."""
    advantage = (losses - losses.flip(0)).detach()
    return losses.mean() + (advantage * chances).mean()


def training_loss(model: Ordered, x_0: Tensor, seed: int, step: int, low: float) -> Tensor:
    """Mask every text twice at one time, and give a scalar with the gradient of the bound per token."""
    b, l = x_0.shape
    row = torch.arange(b)
    uniform = noise.uniforms(seed, row, step, Stream.TIME).squeeze(-1)
    t = training_times.stratified_times(uniform, row, torch.tensor(b), low).float()
    twice, exponents = x_0.repeat(MASKINGS, 1), model.exponents(x_0).repeat(MASKINGS, 1)
    times = t.repeat(MASKINGS)
    uniforms = noise.grid(seed, torch.arange(MASKINGS * b), step, Stream.CORRUPTION, l)
    masked = uniforms < (times.unsqueeze(-1) ** exponents).detach()
    losses, chances = model.loss(twice, masked, exponents, times), log_chance(masked, exponents, times)
    return surrogate(losses.view(MASKINGS, b), chances.view(MASKINGS, b)) / l


@torch.no_grad()
def bound(model: Ordered, drawn: draws.Draws) -> Estimate:
    """Estimate the bound in nats per token. Times are squares of uniform ones, so that early ones vary less.

    They are stratified over all rows, so the error is that of the differences of neighbours.
    """

    def score(x_0: Tensor, seed: Tensor, row: Tensor, counted: Tensor) -> Tensor:
        uniform = noise.uniforms(seed, row, EVALUATION, Stream.TIME).squeeze(-1)
        root = training_times.stratified_times(uniform, row, torch.tensor(drawn.num_rows)).float()
        exponents = model.exponents(x_0)
        uniforms = noise.grid(seed, row, EVALUATION, Stream.CORRUPTION, x_0.shape[1])
        masked = uniforms < root.square().unsqueeze(-1) ** exponents
        return model.loss(x_0, masked, exponents, root.square()) * 2.0 * root / counted.sum(1)

    values, _ = draws.scored(score, drawn)
    values = values.double()
    error = (values.diff().square().mean() / 2 / len(values)).sqrt()
    return Estimate(float(values.mean()), float(error), len(values))


def train(settings: dict[str, Any], spread: float) -> dict[str, Any]:
    """Train as the settings say, and measure the average network on the test text."""
    recipe = PretrainDenoiser(settings)
    recipe.setup()
    model = Ordered(recipe.run.network, recipe.vocabulary.mask_id, spread)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(settings["ema_decay"])
    )
    how, steps = dict(settings["optimizer"]), settings["steps"]
    assert how.pop("_component_") == "torch.optim.AdamW"
    optimizer = torch.optim.AdamW(model.parameters(), **how)
    begin = time.process_time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = how["lr"] * rates.factor(step, steps, settings["warmup_steps"], settings["decay"])
        size = settings["batch_size"] // MASKINGS
        x_0 = pieces.batch_at(recipe.blocks.train, step=step, batch_size=size, seed=settings["seed"])["x_0"]
        optimizer.zero_grad()
        training_loss(model, x_0, settings["seed"], step, settings["time_low"]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings["clip_norm"])
        optimizer.step()
        average.update_parameters(model)
    seconds = time.process_time() - begin
    trained: Any = average.module.eval()
    found = bound(trained, draws.of_settings(recipe.blocks.test, SCORED, settings, torch.device("cpu")))
    exponents = trained.exponents(recipe.blocks.test[:64]).detach()
    return {
        "bits": found.mean / math.log(2),
        "error": found.standard_error / math.log(2),
        "n": found.n,
        "seconds": round(seconds, 1),
        "exponents": [round(float(q), 3) for q in torch.quantile(exponents.flatten(), torch.tensor([0.05, 0.5, 0.95]))],
    }


def main() -> None:
    """Train once, and write a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="a folder of english27")
    parser.add_argument("results", type=Path, help="a file of json lines, which grows")
    parser.add_argument("--spread", type=float, default=0.65 / 0.7, help="of the exponents; 0: no order is learned")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--change", default="{}", help="settings of the training that differ, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    config: Any = OmegaConf.to_container(OmegaConf.load(commands.configs("speedrun")["english27"]))
    own = speedrun.changed(config["base"], json.loads(given.change))
    corpus = {**config["corpus"], "path": given.corpus}
    fixed = {"recipe": "pretrain_denoiser", "output_dir": str(given.results.parent), "device": "cpu", "threads": 1}
    record = train({**fixed, "seed": given.seed, "corpus": corpus, **own}, given.spread)
    record = {"spread": given.spread, "seed": given.seed, "change": json.loads(given.change), **record}
    print(json.dumps(record))
    with given.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
