"""What is drawn of a setting and how it is described: batches, rows, seconds, warming up, statistics of texts."""

from typing import Any

import pytest
import torch
from builders import tiny_denoiser, tiny_network

from edlm.evaluation import quality
from edlm.evaluation.judges import Judgement
from edlm.evaluation.samples import Texts
from edlm.frontier import draws
from edlm.frontier.draws import Drawing, Reference
from edlm.frontier.grid import Alone
from edlm.models import energies
from edlm.runs import timing
from edlm.samplers import autoregressive, plans
from edlm.samplers.corrections import ChainRule, OfEnergy
from edlm.samplers.sampler import Proposal, Sampler
from edlm.weights.named import Autoregressive

LENGTH, CPU = 8, torch.device("cpu")
DRAWING = Drawing(LENGTH, num_samples=5, batch_size=2, seed=3, device=CPU)
PLAIN = Sampler(tiny_denoiser(), plans.Grid(4))
ALONE = Alone(Autoregressive(tiny_network(causal=True, conditioning_size=0), 4), 4, 0.5)


def test_seconds_are_those_of_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "seconds", lambda run, device: run() or 10.0)
    assert draws.draw(PLAIN, DRAWING)[1]["seconds"] == 2.0


def test_an_ar_model_is_drawn_in_batches_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    sample = autoregressive.sample

    def seen(network: Any, count: int, *others: Any, **how: Any) -> Any:
        given.append((count, *others, how))
        return sample(network, count, *others, **how)

    monkeypatch.setattr(autoregressive, "sample", seen)
    tokens, costs = draws.draw(ALONE, DRAWING)
    how = {"seed": 3, "temperature": 0.5}
    assert given == [(n, LENGTH, 4, 4, {**how, "first_row": first}) for n, first in ((2, 0), (2, 2), (1, 4))]
    whole = sample(ALONE.model.network, 5, LENGTH, 4, 4, seed=3, temperature=0.5)  # type: ignore[arg-type]
    assert torch.equal(tokens, whole.tokens)
    del costs["seconds"]
    nothing, one = [0] * 5, [1] * 5
    assert costs == {
        **{"denoiser_passes": nothing, "energy_passes": nothing, "passes": one, "calls": [LENGTH] * 5},
        **{"ess": [None] * 5, "log_weight_std": [None] * 5},
    }


def test_one_step_of_each_family_is_run_before_any_clock_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last of its settings, with one candidate in the whole window; in order, which is dearest, on one text."""
    drawn: list[Any] = []
    monkeypatch.setattr(draws, "draw", lambda setting, drawing: drawn.append((setting, drawing)))
    weighed = PLAIN.replace(correction=OfEnergy(energies.zero(), called="learned"), candidates=3, window=(0.5, 1.0))
    in_order = PLAIN.replace(correction=ChainRule(), selection="speculative")
    cold = PLAIN.replace(proposal=Proposal(0.5), plan=plans.Grid(8))
    draws.warm_up([PLAIN, cold, weighed, in_order, ALONE], DRAWING._replace(execution="compile"))
    short = DRAWING._replace(num_samples=2)
    assert drawn == [
        (cold.replace(plan=plans.Grid(1)), short),
        (weighed.replace(plan=plans.Grid(1), candidates=1, window=(0.0, 1.0)), short),
        (in_order, short._replace(num_samples=1)),
        (ALONE, short._replace(length=1)),
    ]
    drawn.clear()
    draws.warm_up([PLAIN], DRAWING._replace(num_samples=1))
    assert drawn == [(PLAIN.replace(plan=plans.Grid(1)), DRAWING._replace(num_samples=1))]


def test_texts_are_described_one_by_one_and_together() -> None:
    """Text by text what the judge says; of all the divergence from real texts, its error over both."""
    own, real = [torch.tensor([0, 1, 1]), torch.tensor([2, 2])], [torch.tensor([0, 1, 2]), torch.tensor([1, 2])]
    judge = lambda texts: Judgement(torch.tensor([2.5, 1.5]).double(), torch.tensor([3, 2]))  # noqa: E731
    found = draws.describe(
        Texts(own, ["abb", "cc"]), Reference(judge, Texts(real, ["abc", "bc"]), (1, 2), seed=7, replicates=9)
    )
    divergences = found.pop("divergences")
    assert list(divergences) == ["1", "2"]
    for n in (1, 2):
        value = quality.bootstrap(quality.divergence(quality.grams([*own, *real], n)), [2, 2], 7, 9)
        assert divergences[str(n)] == [value.mean, value.standard_error]
    assert found.pop("entropy") == quality.unigram_entropy(own).tolist()
    assert found == {
        **{"nll": [2.5, 1.5], "judged_tokens": [3, 2]},
        **{"characters": [3, 2], "texts": ["abb", "cc"]},
    }


def test_weights_are_averaged_over_the_passes_that_an_energy_corrected() -> None:
    nan = torch.nan
    assert draws._means(torch.tensor([[1.0, nan, 2.0], [nan, nan, nan], [3.0, 3.0, 3.0]])) == [1.5, None, 3.0]
