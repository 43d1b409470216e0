"""The AR model's own law, drawn with drafts of a denoiser: the texts of plain loops, and what it is built of."""

import builders
import pytest
import torch
from drafting import LENGTH, MASK, PROMPTS, SEQUENCES, ar_decoder, ar_network, denoiser, heeding, log_prob, sampler
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor, nn

import edlm
from edlm import contracts
from edlm.likelihood import enumeration
from edlm.models import energies
from edlm.process import categorical, noise, schedules
from edlm.process.noise import Stream
from edlm.samplers import configs, execution, pipelines
from edlm.samplers.corrections import Autoregressive

# ---- One after the other


class Slow:
    """A text by plain loops: no cache, no batch, one pass of each network for every token that is asked about."""

    def __init__(self, made: edlm.samplers.Sampler, start: Tensor, seed: int, row: int) -> None:
        self.made, self.start, self.text = made, start, start.clone()
        self.uniforms = noise.uniforms(
            torch.tensor(seed), torch.tensor(row), 0, Stream.PROPOSAL, torch.arange(len(start)), count=3
        )
        self.rounds = self.drafts = 0

    def _law(self, logits: Tensor) -> Tensor:
        heat, mass = self.made.proposal
        return categorical.nucleus(categorical.cooled(logits[:, :MASK], heat), mass).softmax(-1)[0]

    def wanted(self, place: int) -> Tensor:
        """`p_AR(x | what stands left of a place)`, (m,)."""
        law = self.made.correction
        read = torch.cat([torch.tensor([] if law.bos_id is None else [law.bos_id]).long(), self.text[:place]])
        return self._law(law.network.head(law.network(read.unsqueeze(0))[:, -1]))

    def proposal(self, place: int, done: int) -> Tensor:
        """The denoiser's law at a place where so many tokens are known, from its context."""
        law, length = self.made.correction, len(self.start)
        ahead = min(law.ahead, length)
        width = length if law.context is None else min(max(law.context, ahead), length)
        first = min(max(done + ahead - width, 0), length - width)
        seen = torch.where(torch.arange(length) < done, self.text, self.start)[first : first + width]
        state = {contracts.X_T: seen.unsqueeze(0), contracts.T: torch.ones(1).double()}
        state[contracts.POSITIONS] = torch.tensor([place - first])
        return self._law(self.made.denoiser.logits(self.made.denoiser(TensorDict(state))[contracts.HIDDEN]))

    def draw(self, law: Tensor, place: int, number: int) -> int:
        """A draw by one of a place's numbers."""
        return int(categorical.inverse_cdf(law.log().unsqueeze(0), self.uniforms[None, place, number, None]).tokens)

    def put_right(self, p: Tensor, place: int) -> tuple[int, bool]:
        """What stands at a place given what stands left of it, and whether the draft was refused."""
        q, token, (_, u, again) = self.wanted(place), self.draw(p, place, 0), self.uniforms[place]
        if u * p[token] < q[token]:
            return token, False
        missing = (q - p).clamp(min=0.0).cumsum(-1)
        return int((missing <= again * missing[-1]).sum()), True

    @torch.no_grad()
    def write(self) -> list[int]:
        """The whole text."""
        anew, masks = self.made.correction.anew, self.start == MASK
        end = 1 + int(masks.nonzero().max())
        done = drafted = int(masks.nonzero().min())
        laws: dict[int, Tensor] = {}
        while done < end:
            if anew or drafted <= done:
                drafted = min(done + self.made.correction.ahead, end)
                laws = {place: self.proposal(place, done) for place in range(done, drafted) if masks[place]}
                self.text[list(laws)] = torch.tensor([self.draw(law, place, 0) for place, law in laws.items()]).long()
                self.drafts += bool(laws)
            guesses, found = self.text.clone(), {}
            for place, law in laws.items():
                if place >= done:
                    found[place] = self.put_right(law, place)
            changed = [place for place, (token, no) in found.items() if (no if anew else token != guesses[place])]
            for place, (token, _) in found.items():
                if not anew or place in changed[:1]:
                    self.text[place] = token
            if not changed and drafted < end and masks[drafted]:
                self.text[drafted] = self.draw(self.wanted(drafted), drafted, 2)
            done = changed[0] + 1 if changed else min(drafted + 1, end)
            self.rounds += 1
        return self.text.tolist()


manners = st.fixed_dictionaries(
    {"ahead": st.integers(1, 9), "context": st.sampled_from([None, 1, 3, 6]), "anew": st.booleans()}
)
proposals = st.builds(edlm.samplers.Proposal, st.sampled_from([1.0, 0.6, 1.5]), st.sampled_from([1.0, 0.8]))


@settings(max_examples=25)
@given(
    manners, proposals, st.integers(0, 2**62), st.integers(1, 4), st.sampled_from(PROMPTS), st.booleans(), st.booleans()
)
def test_it_writes_what_plain_loops_write(manner, proposal, seed, b, prompt, with_bos, torchtune) -> None:
    """Rows that keep other numbers of drafts and end at other times; prompts on both sides and in between."""
    length, bos_id = 8, MASK if with_bos else None
    network = ar_decoder(length=length) if torchtune else ar_network(max_length=length)
    if not with_bos:
        prompt = torch.tensor([1]) if prompt is None else torch.cat([torch.tensor([1]), prompt[1:]])
    made = sampler(denoiser(2, length), Autoregressive(network, bos_id, **manner)).replace(proposal=proposal)
    out = edlm.sample(pipelines.pipeline(made, length), b, seed=seed, prompt=prompt)
    start = torch.full((length,), MASK)
    if prompt is not None:
        start[: len(prompt)] = prompt
    slow = [Slow(made, start, seed, row) for row in range(b)]
    assert out["tokens"].tolist() == [each.write() for each in slow]
    assert out["info", "rounds"].sum(1).tolist() == [each.rounds for each in slow]
    read = int((start == MASK).int().argmax()) + (0 if bos_id is None else 1) > 1
    assert out["info", "calls"].sum(1).tolist() == [each.rounds + each.drafts + read for each in slow]


@settings(max_examples=8)
@given(manners, st.integers(0, 2**62), st.integers(2, 6))
def test_a_text_does_not_depend_on_those_beside_it(manner, seed, b) -> None:
    made = sampler(denoiser(2, 8), Autoregressive(ar_network(max_length=8), MASK, **manner))
    together, alone = (
        edlm.sample(pipelines.pipeline(made, 8), n, seed=seed, first_row=first) for n, first in ((b, 0), (1, b - 1))
    )
    assert torch.equal(together["tokens"][-1:], alone["tokens"])
    for key in ("rounds", "calls", "denoiser_tokens", "energy_tokens"):
        assert torch.equal(together["info", key].sum(1)[-1:], alone["info", key].sum(1))


def test_drafts_are_made_at_the_time_of_the_masks_that_the_denoiser_sees() -> None:
    """In its context alone; a denoiser that is told another time drafts badly, though the law is the same."""
    schedule, shown = schedules.cosine(), list[tuple[Tensor, Tensor]]()
    law = Autoregressive(ar_network(max_length=8), MASK, ahead=2, context=5)
    made = pipelines.pipeline(sampler(builders.on(denoiser(2, 8), schedule), law), 8)
    draft = made.kernel.step.draft
    draft.register_forward_pre_hook(lambda _, inputs: shown.append((inputs[0][contracts.X_T], inputs[0][contracts.T])))
    edlm.sample(made, 4, seed=1, prompt=torch.tensor([MASK, 2, MASK, MASK, 1]))
    for x_t, t in shown:
        torch.testing.assert_close(schedule.alpha(t), (x_t != MASK).double().mean(1), rtol=0.0, atol=1e-9)
    assert len({float(each) for _, t in shown for each in t}) > 2


def test_a_row_that_is_finished_early_leaves_the_others_their_own_past() -> None:
    made = pipelines.pipeline(sampler(denoiser(2, 8), Autoregressive(heeding(8, 0.1, 12.0), MASK, ahead=2)), 8)
    prompt = torch.tensor([[0, MASK, 1, 2, 0, 1, 2, 2], [1, 2, 0, MASK, MASK, MASK, MASK, MASK]])
    for seed in range(12):
        both = edlm.sample(made, 2, seed=seed, prompt=prompt)["tokens"]
        assert torch.equal(both[1:], edlm.sample(made, 1, seed=seed, prompt=prompt[1], first_row=1)["tokens"])


# ---- Around it


def test_weighed_candidates_tend_to_it() -> None:
    """As a correction of SIR it is the carry-over energy: by enumeration the law of 64 drafts is nearer than of 4."""
    wanted = log_prob(SEQUENCES).sum(-1).exp()
    far, near = (
        float((enumeration.law(sampler(selection="sir", candidates=k), LENGTH).flatten() - wanted).abs().sum())
        for k in (4, 64)
    )
    assert near < 0.6 * far


def test_windows_that_move_on_are_filled() -> None:
    made = sampler(denoiser(2, 8), Autoregressive(ar_network(max_length=8), MASK))
    found = edlm.extend(pipelines.pipeline(made, 8), 13, 4, 3)["tokens"]
    assert found.shape == (3, 13)
    assert (found != MASK).all()


@pytest.mark.parametrize("anew", [True, False])
def test_what_is_wrapped_around_its_parts_changes_no_token(anew, monkeypatch) -> None:
    made = sampler(denoiser(2, 8), Autoregressive(ar_network(max_length=8), MASK, ahead=3, anew=anew))
    plain = pipelines.pipeline(made, 8)
    counts: list[int] = []

    def pad(count: int) -> int:
        counts.append(count)
        return count + 3

    wrapped = plain._replace(kernel=plain.kernel._replace(step=plain.kernel.step.with_parts(lambda part: part, pad)))
    found, wanted = (edlm.sample(each, 5, seed=1) for each in (wrapped, plain))
    assert counts
    assert torch.equal(found["tokens"], wanted["tokens"])
    assert torch.equal(found["info", "energy_tokens"], wanted["info", "energy_tokens"])


@pytest.mark.slow
def test_compiled_it_draws_the_same_texts() -> None:
    made = pipelines.pipeline(sampler(denoiser(2, 8), Autoregressive(ar_network(max_length=8), MASK, ahead=3)), 8)
    found, wanted = (edlm.sample(each, 5, seed=1)["tokens"] for each in (execution.accelerate(made, "compile"), made))
    assert torch.equal(found, wanted)


def test_in_a_config_it_takes_the_network_of_the_energy_that_is_loaded() -> None:
    network = ar_network()
    known = {"other": energies.zero(), "ar": energies.residual_ar(network, MASK, MASK, False)}
    values = {"plan": {"name": "grid", "num_steps": 1}, "selection": "speculative"}
    values["correction"] = {"name": "autoregressive", "ahead": 2, "context": None}
    made = configs.from_config(values, denoiser(), known)
    assert made.correction == Autoregressive(network, MASK, ahead=2, context=None)
    assert configs.config(made)["correction"] == {
        "name": "autoregressive",
        "bos_id": MASK,
        "temperature": 1.0,
        "ahead": 2,
        "context": None,
        "anew": True,
    }
    with pytest.raises(ValueError, match="autoregressive needs an AR model: name its folder by ar"):
        configs.from_config(values, denoiser(), {})


# ---- Mistakes


def test_what_it_cannot_be_built_of_is_an_error() -> None:
    with pytest.raises(ValueError, match="ahead = 0 must be at least 1"):
        Autoregressive(ar_network(), MASK, ahead=0)
    with pytest.raises(ValueError, match="context = 0 must be at least 1"):
        Autoregressive(ar_network(), MASK, context=0)
    with pytest.raises(ValueError, match="knows 7 ids, and the denoiser 4"):
        sampler(law=Autoregressive(ar_network(vocab_size=7), MASK))
    with pytest.raises(ValueError, match=r"causal=True"):
        sampler(law=Autoregressive(ar_network(causal=False), MASK))
    with pytest.raises(ValueError, match="needs a network that is read with a cache, as a Transformer, not Linear"):
        sampler(law=Autoregressive(nn.Linear(2, 2), MASK))
    with pytest.raises(ValueError, match=r"window = \[0.0, 0.5\] must be \[0, 1\]"):
        sampler(window=(0.0, 0.5))
    with pytest.raises(ValueError, match=r"temperature = 2\.0 of the correction must be 1"):
        sampler(law=Autoregressive(ar_network(), MASK, temperature=2.0))


def test_what_the_network_cannot_read_is_an_error() -> None:
    short = sampler(denoiser(2, 8), Autoregressive(ar_network(), MASK))
    with pytest.raises(ValueError, match="length = 8 must be at most 4, that of the AR network"):
        edlm.sample(pipelines.pipeline(short, 8))
    without = pipelines.pipeline(sampler(law=Autoregressive(ar_network(), None)), LENGTH)
    with pytest.raises(ValueError, match="without a bos_id the first token has no law of its own"):
        edlm.sample(without)
    assert edlm.sample(without, prompt=torch.tensor([1]))["tokens"][0, 0] == 1


def test_a_network_whose_logits_are_no_numbers_is_named_by_the_text_it_spoils() -> None:
    network = ar_network()
    with torch.no_grad():
        network.head.bias[0] = torch.nan
    with pytest.raises(ValueError, match="logits are not finite in pass 0 of text 0"):
        edlm.sample(pipelines.pipeline(sampler(law=Autoregressive(network, MASK)), LENGTH), 2)
