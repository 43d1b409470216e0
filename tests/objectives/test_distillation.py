"""Distillation: targets are those of a teacher that steps, divergences are what they are called, gradients vanish."""

import copy
import itertools

import pytest
import torch
from builders import tiny_denoiser
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.models.denoisers import SubsDenoiser
from edlm.objectives import batches, distillation
from edlm.process import categorical, noise, schedules
from edlm.process.noise import Stream

MASK, LENGTH = 4, 6
SCHEDULE = schedules.log_linear(1e-3)
DIVERGENCES = list(distillation.DIVERGENCES)


def told(seed: int = 0, mask_id: int = MASK, **changes: int) -> SubsDenoiser:
    """A denoiser that is told the time, and whose laws are far from flat."""
    denoiser = tiny_denoiser(seed, mask_id, SCHEDULE, **changes)
    with torch.no_grad():
        denoiser.network.head.weight.mul_(3.0)
    return denoiser


def law(denoiser: SubsDenoiser, x: list[int], t: float) -> Tensor:
    """The law of every position of a text (l, v)."""
    asked = {
        contracts.X_T: torch.tensor([x]),
        contracts.T: torch.tensor([t], dtype=torch.float64),
        contracts.POSITIONS: torch.arange(len(x)),
    }
    with torch.no_grad():
        return denoiser.logits(denoiser(TensorDict(asked))[contracts.HIDDEN]).softmax(-1)


def batch(b: int = 8) -> TensorDict:
    tokens = torch.randint(MASK, (b, LENGTH), generator=torch.Generator().manual_seed(0))
    return batches.training_batch(tokens, seed=3, row=torch.arange(b), step=2, num_rows=b)


def slow_targets(teacher: SubsDenoiser, x_t: list[int], t: float, row: int, num_steps: float, m: int) -> list[Tensor]:
    """What a teacher says of each mask when it is revealed, or last of all, one position after another."""
    x, found = list(x_t), {}
    for number in range(m):
        s = max(t - 1.0 / num_steps, 0.0)
        p = law(teacher, x, t)
        share = (
            1.0
            if s == 0.0
            else 1.0
            - (1.0 - float(SCHEDULE.alpha(torch.tensor(s).double())))
            / (1.0 - float(SCHEDULE.alpha(torch.tensor(t).double())))
        )
        for i, token in enumerate(list(x)):
            if token != MASK:
                continue
            found[i] = p[i]
            u, v = (
                float(noise.uniforms(3, torch.tensor(row), 2, stream, i, count=m)[number])
                for stream in (Stream.REVEAL, Stream.PROPOSAL)
            )
            if u < share:
                x[i] = next(y for y in range(len(p[i])) if v < float(p[i][: y + 1].sum()))
        t = s
    return [found[i] for i in sorted(found)]


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("num_steps", [3, 8])
def test_targets_are_what_a_stepping_teacher_says_of_each_mask(m: int, num_steps: int) -> None:
    """Some texts are so far that the steps end at 0 before all are taken."""
    teacher = told(1)
    stages = distillation.distillation(told(0), teacher, SCHEDULE, num_steps, m).eval()
    out = stages(batch())
    found = teacher.logits(out[contracts.TARGET]).softmax(-1)
    wanted = [
        each
        for row in range(8)
        for each in slow_targets(
            teacher, out[contracts.X_T][row].tolist(), float(out[contracts.T][row]), row, num_steps, m
        )
    ]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-9, atol=1e-12)


def test_the_mean_target_of_two_steps_is_that_of_all_states_between() -> None:
    """A vocabulary of 3, texts of 3, every state that the first step may reach; 8000 texts, 5 standard errors."""
    symbols, n, num_steps = 2, 8000, 4
    teacher = told(7, symbols, vocab_size=3, max_length=3)
    x_t, t, s = [2, 1, 2], 0.6, 0.35
    share = float(
        (SCHEDULE.alpha(torch.tensor(s)) - SCHEDULE.alpha(torch.tensor(t))) / (1 - SCHEDULE.alpha(torch.tensor(t)))
    )
    first, wanted = law(teacher, x_t, t), torch.zeros(2, 3, dtype=torch.float64)
    for states in itertools.product(range(3), repeat=2):
        after = [states[0], 1, states[1]]
        chance = 1.0
        for i, token in zip((0, 2), states, strict=True):
            chance *= (1.0 - share) if token == symbols else share * float(first[i, token])
        second = law(teacher, after, s)
        for place, i in enumerate((0, 2)):
            wanted[place] += chance * (second if after[i] == symbols else first)[i]
    teach = distillation._Teach(teacher, SCHEDULE, 1.0 / num_steps, 2)
    positions = (torch.arange(n).unsqueeze(1) * 3 + torch.tensor([0, 2])).flatten()
    with torch.no_grad():
        target = teach(
            torch.tensor([x_t]).expand(n, -1),
            torch.full((n,), t, dtype=torch.float64),
            positions,
            torch.tensor(0),
            torch.arange(n),
            torch.tensor(0),
        )
        found = teacher.logits(target).softmax(-1).view(n, 2, 3)
    assert ((found.mean(0) - wanted).abs() <= 5.0 * found.std(0) / n**0.5 + 1e-12).all()
    assert (wanted - first[[0, 2]]).abs().max() > 0.01, "two steps are told from one"


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_student_that_is_its_teacher_stays_what_it_is(divergence: str) -> None:
    """With one step at once loss and gradient are zero; with two they are not."""
    teacher = told(1)
    student = copy.deepcopy(teacher)
    out = distillation.distillation(student, teacher, SCHEDULE, 4, 1, divergence)(batch())[contracts.LOSS]
    out.sum().backward()
    assert float(out.detach().abs().max()) < 1e-12
    assert max(float(p.grad.abs().max()) for p in student.network.parameters() if p.grad is not None) < 1e-12
    other = distillation.distillation(student, teacher, SCHEDULE, 4, 2, divergence)(batch())[contracts.LOSS]
    assert float(other.detach().sum()) > 1e-4


def test_divergences_are_what_they_are_called() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
    p, q = (torch.distributions.Categorical(logits=each) for each in (student, teacher))
    found = {name: divergence(student, teacher) for name, divergence in distillation.DIVERGENCES.items()}
    torch.testing.assert_close(found["kl"], torch.distributions.kl_divergence(p, q))
    torch.testing.assert_close(found["kl-fwd"], torch.distributions.kl_divergence(q, p))
    torch.testing.assert_close(found["mse"], ((p.probs - q.probs) ** 2).sum(-1))
    torch.testing.assert_close(found["tvd"], (p.probs - q.probs).clamp(min=0.0).sum(-1))


def test_the_loss_is_the_sum_over_the_masks_of_a_text_and_padding_is_none() -> None:
    student, teacher, data = told(0), told(1), batch()
    data[contracts.X_0] = data[contracts.X_0].index_fill(1, torch.tensor([4, 5]), 3)
    out = distillation.distillation(student, teacher, SCHEDULE, 4, 1, pad_id=3).eval()(data)
    assert not (out[contracts.X_T][:, 4:] == MASK).any()
    for row in range(8):
        x, t = out[contracts.X_T][row].tolist(), float(out[contracts.T][row])
        masks = [i for i, token in enumerate(x) if token == MASK]
        p, q = (law(each, x, t)[masks][:, :MASK] for each in (student, teacher))
        assert float(out[contracts.LOSS][row].detach()) == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-9)


def test_logits_in_tiles_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for at_once in (1 << 20, 15):
        monkeypatch.setitem(categorical.LOGITS_AT_ONCE, "cpu", at_once)
        student = told(0)
        distillation.distillation(student, told(1), SCHEDULE, 4)(batch())[contracts.LOSS].sum().backward()
        found.append([p.grad for p in student.network.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_teacher_is_frozen_and_never_in_training() -> None:
    teacher = tiny_denoiser(1, MASK, SCHEDULE, dropout=0.5)
    student = told(0)
    stages = distillation.distillation(student, teacher, SCHEDULE, 4).train()
    assert student.network.training
    assert not teacher.network.training
    stages(batch())[contracts.LOSS].sum().backward()
    assert all(p.grad is None for p in teacher.network.parameters())
    assert all(p.grad is not None for p in student.network.head.parameters())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"num_steps": 4, "at_once": 0}, r"at_once = 0 must lie in 1\.\.4"),
        ({"num_steps": 4, "at_once": 5}, r"at_once = 5 must lie in 1\.\.4"),
        ({"num_steps": 4, "divergence": "js"}, r"divergence = 'js' must be one of kl, kl-fwd, mse, tvd"),
        ({"num_steps": 4, "time_low": 1.0}, r"time_low = 1\.0 must lie in \[0, 1\)"),
    ],
)
def test_what_makes_no_sense_is_refused(how: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distillation.distillation(told(0), told(1), SCHEDULE, **how)
