"""A denoiser gives the mask no probability, works on the asked positions only, and knows the right noise level."""

import pytest
import torch
from builders import at, tiny_network
from hypothesis import given
from hypothesis import strategies as st
from strategies import Batch, batches, noise_schedules, unit_floats
from tensordict import TensorDict
from torch import Tensor, nn

from edlm import contracts
from edlm.models import denoisers
from edlm.models.denoisers import SubsDenoiser
from edlm.process import categorical, schedules

VOCABULARY = 5
NETWORK = tiny_network(vocab_size=VOCABULARY)


class Recorder(nn.Module):
    """A network that writes down the noise levels it is told, and whose hidden states are the tokens themselves."""

    max_length = 8

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, VOCABULARY, dtype=torch.float64)
        self.told: list[Tensor | None] = []

    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        self.told.append(sigma)
        return at(tokens.unsqueeze(-1).double(), positions)


def ask(denoiser: SubsDenoiser, batch: Batch, positions: list[int] | Tensor, t: float = 0.5) -> Tensor:
    """Hidden states of the flat positions."""
    times = torch.full((len(batch.x_t),), t, dtype=torch.float64)
    inputs = {contracts.X_T: batch.x_t, contracts.T: times, contracts.POSITIONS: torch.as_tensor(positions)}
    return denoiser(TensorDict(inputs))[contracts.HIDDEN]


@st.composite
def questions(draw: st.DrawFn) -> tuple[Batch, list[int]]:
    batch = draw(batches(vocab_size=VOCABULARY))
    return batch, draw(st.lists(st.integers(0, batch.x_t.numel() - 1), min_size=1, max_size=6))


# ---- The law


@given(questions())
def test_the_mask_has_no_probability_and_every_other_token_has_some(question):
    batch, positions = question
    denoiser = denoisers.subs(NETWORK, batch.mask_id)
    law = denoiser.logits(ask(denoiser, batch, positions)).softmax(-1)
    assert (law[:, batch.mask_id] == 0.0).all()
    assert (law.index_select(1, torch.tensor([i for i in range(VOCABULARY) if i != batch.mask_id])) > 0.0).all()


@given(questions(), st.sampled_from([2.0**-53, 1.0 - 2.0**-53]))
def test_the_mask_is_never_drawn(question, u):
    batch, positions = question
    denoiser = denoisers.subs(NETWORK, batch.mask_id)
    logits = denoiser.logits(ask(denoiser, batch, positions))
    tokens = categorical.inverse_cdf(logits, torch.full((len(positions), 1), u).double()).tokens
    assert (tokens != batch.mask_id).all()


@given(questions())
def test_the_other_logits_are_those_of_the_network(question):
    batch, positions = question
    denoiser = denoisers.subs(NETWORK, batch.mask_id)
    expected = NETWORK.head(NETWORK(batch.x_t)).flatten(0, 1)[positions]
    others = torch.arange(VOCABULARY) != batch.mask_id
    torch.testing.assert_close(denoiser.logits(ask(denoiser, batch, positions))[:, others], expected[:, others])


# ---- The positions


@given(questions())
def test_each_asked_position_is_answered_in_its_place(question):
    batch, positions = question
    denoiser = denoisers.subs(Recorder(), batch.mask_id)
    assert torch.equal(ask(denoiser, batch, positions).squeeze(-1).long(), batch.x_t.flatten()[positions])


@given(questions(), st.integers(1, 3))
def test_padded_positions_are_safe_and_do_not_move_the_others(question, padding):
    batch, positions = question
    denoiser = denoisers.subs(NETWORK, batch.mask_id)
    padded = ask(denoiser, batch, [*positions, *[batch.x_t.numel()] * padding])
    assert len(padded) == len(positions) + padding
    assert padded.isfinite().all()
    # Another number of rows may sum a matrix product in another order.
    torch.testing.assert_close(padded[: len(positions)], ask(denoiser, batch, positions), rtol=0.0, atol=1e-12)


def test_no_positions_give_no_states():
    batch = Batch(torch.zeros(2, 3).long(), torch.zeros(2, 3).long(), torch.zeros(2, 3).bool(), 4, VOCABULARY)
    assert ask(denoisers.subs(NETWORK, 4), batch, torch.zeros(0).long()).shape == (0, 16)


# ---- The noise level


@given(questions(), noise_schedules(), unit_floats())
def test_with_a_schedule_the_network_is_told_minus_log_alpha(question, schedule, t):
    batch, positions = question
    network = Recorder()
    try:
        denoiser = denoisers.subs(network, batch.mask_id, schedule)
    except ValueError:
        assert schedule.alpha(torch.ones(1, dtype=torch.float64)) < 1e-12
        return
    ask(denoiser, batch, positions, t)
    expected = -schedule.alpha(torch.full((len(batch.x_t),), t, dtype=torch.float64)).log()
    assert torch.equal(network.told[0], expected)


@given(questions())
def test_without_a_schedule_the_network_is_told_nothing(question):
    network = Recorder()
    ask(denoisers.subs(network, question[0].mask_id), *question)
    assert network.told == [None]


@pytest.mark.parametrize(
    "schedule", [schedules.log_linear(), schedules.polynomial(2.0), schedules.cosine(), schedules.cosine_squared()]
)
def test_a_schedule_whose_noise_level_ends_infinite_is_refused(schedule):
    with pytest.raises(ValueError, match=r"finite sigma\(1\)"):
        denoisers.subs(NETWORK, 0, schedule)


# ---- Baselines


@given(questions())
def test_the_baselines_answer_the_positions_that_they_are_asked(question):
    batch, positions = question
    schedule = schedules.log_linear(1e-3)
    expected = ask(denoisers.subs(NETWORK, batch.mask_id, schedule), batch, positions)
    for build in (denoisers.d3pm, denoisers.sedd):
        assert torch.equal(ask(build(NETWORK, batch.mask_id, schedule), batch, positions), expected)


@given(questions())
def test_the_unrestricted_law_may_predict_the_mask_and_sums_to_one(question):
    batch, positions = question
    denoiser = denoisers.d3pm(NETWORK, batch.mask_id)
    law = denoiser.log_prob(ask(denoiser, batch, positions)).exp()
    torch.testing.assert_close(law.sum(-1), torch.ones(len(positions)).double())
    assert (law > 0.0).all()


@given(st.integers(0, VOCABULARY - 1), st.floats(0.01, 0.99))
def test_score_logits_of_zero_are_the_exact_score_of_uniform_data(mask_id, alpha):
    network = Recorder()
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.zeros_(network.head.bias)
    denoiser = denoisers.sedd(network, mask_id, schedules.log_linear(1e-3))
    score = denoiser.log_score(torch.ones(1, 1).double(), torch.tensor([alpha]).double()).exp()[0]
    # A token of uniform data at a kept position, over a mask: alpha / (v - 1) to 1 - alpha.
    exact = torch.full((VOCABULARY,), alpha / (VOCABULARY - 1) / (1 - alpha)).double()
    exact[mask_id] = 1.0
    torch.testing.assert_close(score, exact, rtol=1e-6, atol=0.0)


def test_scores_without_a_noise_level_are_refused():
    with pytest.raises(ValueError, match="sedd needs a schedule"):
        denoisers.sedd(NETWORK, 0, None)


# ---- The module


@pytest.mark.parametrize("mask_id", [-1, VOCABULARY])
@pytest.mark.parametrize("build", [denoisers.subs, denoisers.d3pm, denoisers.sedd])
def test_a_mask_outside_the_vocabulary_is_refused(build, mask_id):
    with pytest.raises(ValueError, match=f"mask_id = {mask_id} is outside the network's vocabulary of {VOCABULARY}"):
        build(NETWORK, mask_id, schedules.log_linear(1e-3))


def test_a_denoiser_says_its_sizes_and_holds_its_network():
    denoiser = denoisers.subs(NETWORK, 4)
    assert isinstance(denoiser, contracts.Denoiser)
    assert (denoiser.mask_id, denoiser.vocab_size, denoiser.max_length) == (4, VOCABULARY, 8)
    assert {id(p) for p in denoiser.parameters()} == {id(p) for p in NETWORK.parameters()}


def test_the_log_probability_of_a_token_is_that_of_all_logits_where_the_head_is_a_plain_layer():
    """Of one state and of several: one number for each."""
    denoiser = denoisers.subs(Recorder(), mask_id=4)
    hidden = torch.linspace(-2.0, 2.0, 6, dtype=torch.float64).unsqueeze(-1)
    tokens = torch.tensor([0, 3, 1, 2, 3, 0])
    for n in (1, 2, 6):
        law = denoiser.logits(hidden[:n]).log_softmax(-1)
        expected = torch.stack([law[i, token] for i, token in enumerate(tokens[:n])])
        torch.testing.assert_close(denoiser.token_log_prob(hidden[:n], tokens[:n]), expected)
