"""Prefix speculation, which keeps no guess behind a refused token: the same texts in more rounds."""

from typing import Any

import torch
from torch import Tensor

from edlm import contracts
from edlm.samplers.pipelines import Pipeline
from edlm.samplers.speculative import Speculation


class Forgetting(Speculation):
    """Prefix speculation: what follows the first token that changed is guessed anew, as it was at first."""

    def _round(self, state: Any, rows: Tensor, written: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        taken, found, wrong = super()._round(state, rows, written)
        flat = state[contracts.POSITIONS][taken]
        changed = found != written.flatten()[flat]
        for row in rows.tolist():
            own = flat // written.shape[1] == row
            after = own & (torch.cumsum(changed & own, 0) - (changed & own).long() > 0)
            found = torch.where(after, state[contracts.PROPOSED][taken], found)
        return taken, found, wrong


def forgetting(pipeline: Pipeline) -> Pipeline:
    """The same pipeline with a step in order whose guesses after a refusal are thrown away."""
    step = pipeline.kernel.step
    assert isinstance(step, Speculation)
    own = Forgetting(step.propose, step.verify, step.resample, step.reads, step.pad)
    return pipeline._replace(kernel=pipeline.kernel._replace(step=own))
