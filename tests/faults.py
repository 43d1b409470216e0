"""Faults to plant in a copy of the package, each with the test that must catch it; see `test_planted_faults.py`.

`published` are the known faults of the published implementation, in the words of `docs/departures.md`; `own` are ones
that are easily made. A fault is one replacement in one file, whose old text must be there exactly once.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """What goes wrong, where it is planted, and which test fails then."""

    name: str
    file: str
    old: str
    new: str
    caught_by: str


PUBLISHED = [
    Fault("resampling weights softmax(+E)", "particles.py", "return -energy.to(", "return energy.to(", ""),
    Fault(
        "probabilities handed to the AR energy as log-probabilities",
        "energies.py",
        "log_p_candidates.double()",
        "log_p_candidates.double().exp()",
        "",
    ),
    Fault(
        "candidates laid out (k, b) and read as (b, k)",
        "energies.py",
        "x_0 = candidates.flatten(0, 1)",
        "x_0 = candidates.transpose(0, 1).flatten(0, 1)",
        "",
    ),
    Fault(
        "noise of a draw in the logits' own precision",
        "categorical.py",
        "target = uniforms * total",
        "target = uniforms.bfloat16().double() * total",
        "",
    ),
    Fault(
        "frozen proposal in train mode while negatives are drawn",
        "pipelines.py",
        "super().train(False)",
        "super().train(mode)",
        "",
    ),
    Fault("raw weights where EMA weights belong", "recipes/_training.py", "self.folder, self.step, self.average", "self.folder, self.step, self.network", ""),
    Fault(
        "NCE as log(sigmoid + 1e-8)",
        "objectives.py",
        "return F.softplus(energy_positive)",
        "return -(torch.sigmoid(-energy_positive) + 1e-8).log()",
        "",
    ),
    Fault(
        "log Z from one sample",
        "particles.py",
        "return log_weights.logsumexp(-1) - math.log(log_weights.shape[-1])",
        "return log_weights[..., 0]",
        "",
    ),
    Fault("t passed where sigma is expected", "denoisers.py", "schedules.sigma(self.schedule, t)", "t", ""),
    Fault(
        "masks left over at the end of the grid",
        "absorbing.py",
        "inner = still_masked[1:-1].flip(0).contiguous()",
        "inner = (still_masked[1:-1] * 0.99 + 0.001).flip(0).contiguous()",
        "",
    ),
    Fault(
        "empty steps are run (no notion of nothing moved)",
        "absorbing.py",
        "passes = used.sum(-1)",
        "passes = used.sum(-1) * 0 + num_steps",
        "",
    ),
    Fault("T-step loss not finite at the grid's end", "objectives.py", "", "", ""),
    Fault(
        "padding counts in an energy",
        "energies.py",
        "            counts = counts & (x_t != self.pad_id)\n",
        "            pass\n",
        "",
    ),
    Fault(
        "position 0 in one part of the AR energy only",
        "energies.py",
        "            counts = counts & (torch.arange(x_t.shape[1], device=x_t.device) > 0)\n",
        "            pass\n",
        "",
    ),
    Fault(
        "one moving row makes every row pay",
        "absorbing.py",
        "    order = torch.where(masked, (used",
        "    used = used.any(0, keepdim=True).expand_as(used)\n    order = torch.where(masked, (used",
        "",
    ),
    Fault(
        "a draw is discarded before the one that counts",
        "samplers.py",
        "absorbing.reveal(x_t, _keep(candidates, chosen), positions)",
        "absorbing.reveal(x_t, candidates[:, 0], positions)",
        "",
    ),
    Fault("SEDD with sigma zeroed", "objectives.py", "", "", ""),
    Fault(
        "the last partial batch is dropped",
        "recipes/generate.py",
        "for first in range(0, total, settings",
        "for first in range(0, total - total % settings[\"batch_size\"], settings",
        "",
    ),
    Fault(
        "masking at t = 1 differs between training and sampling",
        "absorbing.py",
        "/ (1.0 - _alpha_at_one(schedule, grid))",
        "",
        "",
    ),
]

OWN = [
    Fault("plan off by one step", "absorbing.py", "return grid.shape[0] - 2 - torch", "return grid.shape[0] - 3 - torch", ""),
    Fault("alpha and 1 - alpha swapped", "absorbing.py", "masked = uniforms < (1.0 - alpha)", "masked = uniforms < (alpha)", ""),
    Fault("reveal times rise instead of falling", "absorbing.py", "schedule.inverse(1.0 - uniforms *", "schedule.inverse(uniforms *", ""),
    Fault("corruption masks what must be kept", "absorbing.py", "masked = masked & ~keep", "masked = masked", ""),
    Fault("carry-over missing", "absorbing.py", "return torch.where(positions, draft, x_t)", "return draft", ""),
    Fault("a step reveals the pass before its own", "pipelines.py", "revealed = plan.order == p\n", "revealed = plan.order == max(p - 1, 0)\n", ""),
    Fault("window inverted", "pipelines.py", "inside = (plan.t >= low) & (plan.t <= high)", "inside = (1 - plan.t >= low) & (1 - plan.t <= high)", ""),
    Fault("window open at its upper end", "pipelines.py", "(plan.t <= high)", "(plan.t < high)", ""),
    Fault("the energy used outside its window", "samplers.py", "torch.where(corrected, self.selection(log_weights, uniforms), 0)", "self.selection(log_weights, uniforms)", ""),
    Fault("dropout left on while sampling", "pipelines.py", "    _check_evaluating(kernel.step)\n", "", ""),
    Fault("rows of a later batch reuse the first one's noise", "pipelines.py", "torch.arange(first_row, first_row + b, device=device)", "torch.arange(0, b, device=device)", ""),
    Fault("noise reused between steps", "samplers.py", "Stream.PROPOSAL, positions % length, count=k)", "Stream.PROPOSAL, positions % length, count=k)  #", ""),
    Fault("noise reused between particles", "noise.py", "return lanes.flatten(-2)[..., :count]", "return lanes.flatten(-2)[..., :1].expand(*lanes.shape[:-2], count)", ""),
    Fault("float32 uniforms", "noise.py", "bits.to(torch.float64) + 0.5", "bits.to(torch.float32) + 0.5", ""),
    Fault("a stream missing from the key", "noise.py", "+ int(stream) * _BLOCKS_PER_STREAM", "", ""),
    Fault("the seed's upper half ignored", "noise.py", "(seed >> 32) & _LOW_32", "0", ""),
    Fault("nine rounds of Philox", "noise.py", "_ROUNDS = 10", "_ROUNDS = 9", ""),
    Fault("temperature of the energy inverted", "particles.py", ".to(torch.float64) / temperature", ".to(torch.float64) * temperature", ""),
    Fault("weights not normalised in SIR", "particles.py", "target = uniforms[:, :1] * cumulative[:, -1:]", "target = uniforms[:, :1]", ""),
    Fault("ESS without the square", "particles.py", "log_ess = 2.0 * log_weights.logsumexp(-1)", "log_ess = log_weights.logsumexp(-1)", ""),
    Fault("Metropolis-Hastings accepts the worse", "particles.py", "< log_weights[:, j] - current", "< current - log_weights[:, j]", ""),
    Fault("Metropolis-Hastings compares with the first for ever", "particles.py", "        current = torch.where(accepted, log_weights[:, j], current)\n", "", ""),
    Fault("greedy takes the highest energy", "particles.py", "return log_weights.argmax(-1)", "return log_weights.argmin(-1)", ""),
    Fault("leave-one-out with n for n - 1", "particles.py", "(others.logsumexp(-1) - math.log(n - 1))", "(others.logsumexp(-1) - math.log(n))", ""),
    Fault("wrong axis in the gather of the chosen particle", "samplers.py", "candidates.gather(1, index)", "candidates.flip(1).gather(1, index)", ""),
    Fault("proposal temperature inverted", "samplers.py", "logits / self.temperature", "logits * self.temperature", ""),
    Fault("the mask can be drawn", "denoisers.py", "logits.masked_fill(columns == self.mask_id, -torch.inf)", "logits", ""),
    Fault("sums over the vocabulary in float32", "categorical.py", "blocks.sum(-1, dtype=torch.float64).cumsum(-1)", "blocks.sum(-1).cumsum(-1).double()", ""),
    Fault("a draw takes the token before its own", "categorical.py", "return torch.searchsorted(cumulative, target, right=True).minimum(last)", "return torch.searchsorted(cumulative, target, right=False).minimum(last)", ""),
    Fault("log-probability of a draw not normalised", "categorical.py", "shifted.gather(-1, tokens) - total.log().to(shifted.dtype)", "shifted.gather(-1, tokens)", ""),
    Fault("slope of the schedule without its rate", "schedules.py", "torch.full_like(t, -rate)", "torch.full_like(t, -1.0)", ""),
    Fault("NELBO weight over alpha instead of 1 - alpha", "schedules.py", "/ (1.0 - schedule.alpha(t))", "/ schedule.alpha(t)", ""),
    Fault("times not stratified", "schedules.py", "((uniforms + row) / num_rows)", "(uniforms)", ""),
    Fault("NELBO averaged over positions instead of summed", "objectives.py", "* -log_prob.sum(-1)", "* -log_prob.mean(-1)", ""),
    Fault("NCE with its sides swapped", "objectives.py", "F.softplus(energy_positive) + F.softplus(-energy_negative)", "F.softplus(-energy_positive) + F.softplus(energy_negative)", ""),
    Fault("NCE sums over negatives", "objectives.py", "F.softplus(-energy_negative).mean(-1)", "F.softplus(-energy_negative).sum(-1)", ""),
    Fault("ranking NCE takes the last for the data", "objectives.py", "return -scores.log_softmax(-1)[..., 0]", "return -scores.log_softmax(-1)[..., -1]", ""),
    Fault("one pass scored on its own position only, times l", "likelihoods.py", "return -spread.sum(1) / masked.sum(1)", "return -spread.sum(1) / length", ""),
    Fault("causal mask missing", "networks.py", "is_causal=self.causal", "is_causal=False", ""),
    Fault("keys not rotated", "networks.py", "_rotate(k, *rotary)", "k", ""),
    Fault("shift and scale swapped", "networks.py", "shift, scale = self.modulation(conditioning)", "scale, shift = self.modulation(conditioning)", ""),
    Fault("bos counted twice: the AR model sees the token it predicts", "energies.py", "F.pad(tokens[:, :-1], (1, 0), value=bos_id)", "tokens", ""),
    Fault("carry-over form counts visible tokens", "energies.py", "counts = x_t == self.mask_id if self.carry_over else", "counts = torch.ones_like(x_t, dtype=torch.bool) if self.carry_over else", ""),
    Fault("negatives take a gradient", "pipelines.py", "        with torch.no_grad():\n            return tensordict.copy()", "        with torch.enable_grad():\n            return tensordict.copy()", ""),
    Fault("the data is not candidate 0", "pipelines.py", "torch.cat([x_0.unsqueeze(1), drafts], dim=1)", "torch.cat([drafts, x_0.unsqueeze(1)], dim=1)", ""),
    Fault("an epoch repeats the order of the first", "corpora.py", "noise.permutation(seed, epoch, size)", "noise.permutation(seed, 0, size)", ""),
    Fault("optimiser state forgotten on resume", "recipes/_training.py", "        self.optimizer.load_state_dict(state[\"optimizer\"])\n", "", ""),
    Fault("EMA forgotten on resume", "recipes/_training.py", "        self.ema.n_averaged.fill_(state[\"averaged\"])\n", "", ""),
    Fault("the step's dropout not seeded", "recipes/_training.py", "        torch.manual_seed(self.seed * 1_000_003 + self.step)", "        torch.seed()", ""),
]
