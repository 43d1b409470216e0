"""The AR model's own law, drawn with drafts of a denoiser: the same as one token after the other, whatever drafts."""

import itertools
from functools import partial

import builders
import pytest
import torch
from builders import tiny_denoiser, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import all_sequences, index_of
from scipy import stats
from tensordict import TensorDict
from torch import Tensor, nn

import edlm
from edlm import contracts
from edlm.likelihood import bounds, enumeration, hidden_markov
from edlm.models import denoisers, energies
from edlm.nn import networks
from edlm.nn.attention import Cache
from edlm.nn.networks import Transformer
from edlm.process import categorical, noise, schedules
from edlm.process.noise import Stream
from edlm.samplers import configs, execution, pipelines, plans
from edlm.samplers.corrections import Autoregressive

SYMBOLS, LENGTH, MASK = 3, 4, 3
SEQUENCES = all_sequences(SYMBOLS, LENGTH)
CAUSAL = {"conditioning_size": 0, "causal": True, "num_layers": 2, "vocab_size": SYMBOLS + 1}
close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-9)


def ar_network(seed: int = 1, max_length: int = LENGTH, **changes: object) -> Transformer:
    return tiny_network(seed, **(CAUSAL | {"max_length": max_length} | changes))


def denoiser(seed: int = 0, max_length: int = LENGTH, sharpness: float = 3.0) -> denoisers.SubsDenoiser:
    """Far enough from the AR model that many of its drafts are refused."""
    own = tiny_denoiser(seed, MASK, vocab_size=SYMBOLS + 1, max_length=max_length, num_layers=1)
    with torch.no_grad():
        own.network.head.weight.mul_(sharpness)
    return own


def sampler(
    own: contracts.Denoiser | None = None,
    law: Autoregressive | None = None,
    plan: plans.Plan = plans.Grid(1),  # noqa: B008
    **changes: object,
) -> edlm.samplers.Sampler:
    law = law or Autoregressive(ar_network(), MASK)
    made = edlm.samplers.Sampler(own or denoiser(), plan, correction=law, selection="speculative")
    return made.replace(**changes)


@torch.no_grad()
def log_prob(tokens: Tensor, network: Transformer | None = None, temperature: float = 1.0) -> Tensor:
    """`log p_AR(x_i | x_<i)` of whole texts (n, l), from one pass over them with the mask's id in front."""
    network = network or ar_network(max_length=tokens.shape[1])
    read = torch.cat([torch.full_like(tokens[:, :1], MASK), tokens[:, :-1]], dim=1)
    logits = network.head(network(read))[..., :MASK] / temperature
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


# ---- What is kept of the past


@torch.no_grad()
@settings(max_examples=25)
@given(st.integers(0, 50), st.integers(1, 3), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 2))
def test_what_follows_is_the_pass_over_the_whole_text(seed: int, b: int, parts: list[int], room: int) -> None:
    """Rows that are at other places, and a cache in which what is not read is anything."""
    length = sum(parts)
    network = ar_network(seed % 5, num_heads=[1, 2, 4][seed % 3], max_length=24)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(SYMBOLS + 1, (b, length), generator=generator)
    late = torch.randint(0, 3, (b,), generator=generator)  # of each row so many tokens stand before these
    before = torch.randint(SYMBOLS + 1, (b, 3), generator=generator)
    whole = [network(torch.cat([x[:n], y]).unsqueeze(0))[0, n:] for x, y, n in zip(before, tokens, late, strict=True)]
    cache = Cache(*(kept + 1e6 for kept in network.empty_cache(b, length + 3 + room)))
    start, found = torch.zeros(b, dtype=torch.int64), []
    for step, part in enumerate([before, *tokens.split(parts, dim=1)]):
        hidden, own = network.follow(part, start, cache)
        at = (start.unsqueeze(-1) + torch.arange(part.shape[1]))[None, :, None, :, None]
        cache = Cache(*(kept.scatter(3, at.expand_as(new), new) for kept, new in zip(cache, own, strict=True)))
        start = late if step == 0 else start + part.shape[1]
        found += [hidden] if step else []
    close(torch.cat(found, dim=1), torch.stack(whole))


def test_it_writes_into_nothing() -> None:
    network = ar_network()
    past = network.empty_cache(2, 3)
    before = [kept.clone() for kept in past]
    network.follow(torch.tensor([[0, 1], [1, 2]]), torch.tensor([1, 0]), past)
    assert all(torch.equal(kept, old) for kept, old in zip(past, before, strict=True))


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


PROMPTS = [
    None,
    torch.tensor([1, 2]),
    torch.tensor([0, MASK, MASK, 2]),
    torch.tensor([MASK, 1, MASK, MASK, 0, 0, 2, MASK]),
    torch.tensor([2, MASK, 0, MASK, 1, MASK, MASK, 1]),
]
manners = st.fixed_dictionaries(
    {"ahead": st.integers(1, 9), "context": st.sampled_from([None, 1, 3, 6]), "anew": st.booleans()}
)
proposals = st.builds(edlm.samplers.Proposal, st.sampled_from([1.0, 0.6, 1.5]), st.sampled_from([1.0, 0.8]))


@settings(max_examples=25)
@given(manners, proposals, st.integers(0, 2**62), st.integers(1, 4), st.sampled_from(PROMPTS), st.booleans())
def test_it_writes_what_plain_loops_write(manner, proposal, seed, b, prompt, with_bos) -> None:
    """Rows that keep other numbers of drafts and end at other times; prompts on both sides and in between."""
    length, bos_id = 8, MASK if with_bos else None
    if not with_bos:
        prompt = torch.tensor([1]) if prompt is None else torch.cat([torch.tensor([1]), prompt[1:]])
    made = sampler(denoiser(2, length), Autoregressive(ar_network(max_length=length), bos_id, **manner))
    made = made.replace(proposal=proposal)
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
        close(schedule.alpha(t), (x_t != MASK).double().mean(1))
    assert len({float(each) for _, t in shown for each in t}) > 2


def heeding(max_length: int, last: float, sharpness: float = 1.0) -> Transformer:
    """A network whose law depends on the last token so much, and the more on those before it the less that is."""
    network = ar_network(max_length=max_length)
    with torch.no_grad():
        network.embedding.weight.mul_(last)
        network.head.weight.mul_(sharpness)
    return network


def test_a_row_that_is_finished_early_leaves_the_others_their_own_past() -> None:
    made = pipelines.pipeline(sampler(denoiser(2, 8), Autoregressive(heeding(8, 0.1, 12.0), MASK, ahead=2)), 8)
    prompt = torch.tensor([[0, MASK, 1, 2, 0, 1, 2, 2], [1, 2, 0, MASK, MASK, MASK, MASK, MASK]])
    for seed in range(12):
        both = edlm.sample(made, 2, seed=seed, prompt=prompt)["tokens"]
        assert torch.equal(both[1:], edlm.sample(made, 1, seed=seed, prompt=prompt[1], first_row=1)["tokens"])


# ---- The law


@pytest.mark.parametrize("plan", [plans.Grid(1), plans.LeftToRight(1), plans.LeftToRight(3)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_its_enumerated_law_is_that_of_the_ar_model_whatever_the_denoiser_is(seed, plan) -> None:
    close(enumeration.law(sampler(denoiser(seed), plan=plan), LENGTH).flatten(), log_prob(SEQUENCES).sum(-1).exp())


def two_at_a_time() -> Tensor:
    """The law of texts of which a pass draws all masks in order and keeps any two: by plain loops, (m^l,)."""
    law, own = torch.zeros(len(SEQUENCES), dtype=torch.float64), log_prob(SEQUENCES)
    pairs = list(itertools.combinations(range(LENGTH), 2))
    for first in pairs:
        key = SEQUENCES[:, first[0]] * SYMBOLS + SEQUENCES[:, first[1]]
        before = torch.zeros(SYMBOLS**2, dtype=torch.float64).index_add(0, key, own.sum(-1).exp())[key]
        rest = [place for place in range(LENGTH) if place not in first]
        law += before * own[:, rest].sum(-1).exp() / len(pairs)
    return law


def test_of_a_scattered_plan_what_is_not_kept_is_summed_out() -> None:
    """Two of four in any order: `q(x^S)` with what stands left of S drawn from the AR model and forgotten."""
    close(enumeration.law(sampler(plan=plans.TokensPerPass(2)), LENGTH).flatten(), two_at_a_time())


STARTS = {"nothing": None, "prefix": torch.tensor([1, 2]), "infilling": torch.tensor([2, MASK, 0, MASK])}
MANNERS = {
    "anew": {"ahead": 2, "context": 3, "anew": True},
    "kept": {"ahead": 3, "context": None, "anew": False},
}


def soft() -> Transformer:
    """Every text likely enough to be counted."""
    network = ar_network()
    with torch.no_grad():
        network.head.weight.mul_(0.5)
        network.head.bias.mul_(0.5)
    return network


def law_of(network: Transformer, start: Tensor | None, temperature: float) -> Tensor:
    """`prod_{i masked} p_AR(x_i | x_<i)` of every text with the given tokens, (m^l,)."""
    given_ = torch.full((LENGTH,), MASK)
    if start is not None:
        given_[: len(start)] = start
    terms = torch.where(given_ == MASK, log_prob(SEQUENCES, network, temperature), 0.0)
    return torch.where(((given_ == SEQUENCES) | (given_ == MASK)).all(-1), terms.sum(-1).exp(), 0.0)


def p_value(tokens: Tensor, law: Tensor) -> float:
    """Of Pearson's test; texts of which fewer than five are expected count as one."""
    counts, wanted = torch.bincount(index_of(tokens, SYMBOLS), minlength=len(law)), len(tokens) * law
    assert not counts[law == 0].any()
    rare = wanted < 5
    cells = [torch.cat([each[~rare], each[rare].sum().unsqueeze(0)]) for each in (counts.double(), wanted)]
    found, expected = (each[cells[1] > 0] for each in cells)
    return float(stats.chisquare(found, expected).pvalue)


@pytest.mark.parametrize("manner", MANNERS.values(), ids=MANNERS)
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_texts_have_the_law_of_the_ar_model(start, manner) -> None:
    """Chi-square of 6,000 texts: false alarms 1e-4 for each of 6; a law 15 % hotter fails."""
    made = sampler(law=Autoregressive(soft(), MASK, **manner), proposal=edlm.samplers.Proposal(1.2))
    drawn = edlm.sample(pipelines.pipeline(made, LENGTH), 6_000, seed=3, prompt=start)
    assert (drawn["info", "rounds"].sum(1) > 1).any()
    assert p_value(drawn["tokens"], law_of(soft(), start, 1.2)) > 1e-4
    assert p_value(drawn["tokens"], law_of(soft(), start, 1.2 * 1.3)) < 1e-4


def test_of_a_scattered_plan_texts_have_the_law_that_is_enumerated() -> None:
    """Chi-square of 6,000 texts, false alarms 1e-4; the law of the plan from left to right fails."""
    network = heeding(LENGTH, 5.0)
    made = sampler(law=Autoregressive(network, MASK, ahead=2), plan=plans.TokensPerPass(2))
    drawn = edlm.sample(pipelines.pipeline(made, LENGTH), 6_000, seed=4)["tokens"]
    assert p_value(drawn, enumeration.law(made, LENGTH).flatten()) > 1e-4
    assert p_value(drawn, law_of(network, None, 1.0)) < 1e-4


# ---- A source of a known law


class OfSource(nn.Module):
    """A hidden Markov model as a causal network: its cache are the tokens, its states the laws of the next one."""

    def __init__(self, source: hidden_markov.Source, max_length: int) -> None:
        super().__init__()
        self.source, self.max_length = source, max_length
        self.head = networks.Head(source.num_symbols + 1, source.num_symbols + 1, bias=False)
        nn.init.eye_(self.head.weight)
        self.double()

    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        start, empty = torch.zeros_like(tokens[:, 0]), self.empty_cache(len(tokens), 0)
        return builders.at(self.follow(tokens, start, empty)[0], positions)

    def follow(self, tokens: Tensor, start: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        (b, m), symbols, states = tokens.shape, self.source.num_symbols, []
        for place in range(m):
            law = torch.zeros(b, symbols + 1, dtype=torch.float64)
            for begin in set(start.tolist()):
                rows = start == begin
                text = torch.cat([cache.keys[0, rows, 0, :begin, 0].long(), tokens[rows, : place + 1]], dim=1)[:, 1:]
                one_more = [torch.cat([text, torch.full_like(tokens[rows, :1], each)], 1) for each in range(symbols)]
                found = [hidden_markov.log_next(self.source, each)[:, -1] for each in one_more]
                law[rows, :symbols] = torch.stack(found, dim=1)
            states.append(law)
        own = tokens.double()[None, :, None, :, None]
        return torch.stack(states, dim=1), Cache(own, own)

    def empty_cache(self, b: int, length: int) -> Cache:
        return Cache(*torch.zeros(2, 1, b, 1, length, 1, dtype=torch.float64))


def test_of_an_exact_ar_model_texts_have_the_law_of_the_source() -> None:
    """Hidden Markov model, its exact denoiser drafting: chi-square of 2,000 texts, false alarms 1e-4; few refusals."""
    source = hidden_markov.random_hidden_markov(0, 2, SYMBOLS, strength=0.6)
    own = hidden_markov.denoiser(source, LENGTH)
    made = sampler(own, Autoregressive(OfSource(source, LENGTH), MASK, ahead=2))
    out = edlm.sample(pipelines.pipeline(made, LENGTH), 2_000, seed=0)
    law = hidden_markov.log_prob(source, SEQUENCES).exp()
    assert p_value(out["tokens"], law) > 1e-4
    assert out["info", "rounds"].sum(1).double().mean() < 2.6
    close(enumeration.law(made, LENGTH).flatten(), law)


# ---- Its likelihood


@pytest.mark.parametrize("plan", [plans.Grid(1), plans.LeftToRight(2)], ids=str)
def test_its_bound_is_the_likelihood_of_the_ar_model(plan) -> None:
    found = bounds.of_sampler(sampler(plan=plan), SEQUENCES, torch.tensor(0), torch.arange(len(SEQUENCES)))
    close(LENGTH * found.nats, -log_prob(SEQUENCES).sum(-1))


def test_a_prompt_is_given_to_its_bound() -> None:
    scored = torch.tensor([False, True, False, True]).expand_as(SEQUENCES)
    keys = SEQUENCES, torch.tensor(0), torch.arange(len(SEQUENCES))
    found = bounds.of_sampler(sampler(), *keys, scored=scored, num_completions=3)  # which are of drafts alone
    close(2 * found.nats, -log_prob(SEQUENCES)[:, [1, 3]].sum(-1))


@pytest.mark.parametrize("plan", [plans.Grid(2), plans.TokensPerPass(1)], ids=str)
def test_where_masks_stand_to_the_left_it_has_no_bound(plan) -> None:
    made = sampler(plan=plan)
    assert "masks stand left of what a pass reveals" in bounds.missing(made)
    with pytest.raises(ValueError, match="take one step, or left_to_right"):
        bounds.of_sampler(made, SEQUENCES, torch.tensor(0), torch.arange(len(SEQUENCES)))


def test_its_energy_is_that_of_drafts_carried_over_and_of_what_begins_at_the_first_mask() -> None:
    network, x_t = ar_network(), torch.tensor([[1, MASK, MASK, MASK]])
    drafts = SEQUENCES[SEQUENCES[:, 0] == 1].unsqueeze(0)
    log_p = torch.where(x_t == MASK, -1.0, 0.0).unsqueeze(1).expand_as(drafts).double()
    state = TensorDict({contracts.CANDIDATES: drafts, contracts.X_T: x_t, contracts.LOG_P_CANDIDATES: log_p})
    state[contracts.POSITIONS] = torch.tensor([1, 2, 3])
    own = energies.ordered_ar(network, MASK, MASK)
    close(own(state)[contracts.ENERGY], energies.residual_ar(network, MASK, MASK, True)(state)[contracts.ENERGY])
    for places, finite in (([1, 2], True), ([2], False)):
        some = torch.where(torch.tensor([i in (0, *places) for i in range(LENGTH)]), drafts, MASK)
        found = own(state.clone().update({contracts.CANDIDATES: some, contracts.POSITIONS: torch.tensor(places)}))
        assert bool(found[contracts.ENERGY].isfinite().all()) == finite
        if finite:
            close(found[contracts.ENERGY][0], -2.0 - log_prob(drafts[0])[:, places].sum(-1))


# ---- What it costs


class Reads:
    """How many tokens pass the first layer of networks, call by call."""

    def __init__(self, *of: Transformer) -> None:
        self.tokens: list[list[int]] = [[] for _ in of]
        for network, found in zip(of, self.tokens, strict=True):
            layer = network.trunk.blocks[0].attention.qkv
            layer.register_forward_hook(lambda _, inputs, __, found=found: found.append(inputs[0].shape[:-1].numel()))


@pytest.mark.parametrize("anew", [True, False])
@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_what_is_told_is_what_networks_have_read(prompt, anew) -> None:
    own, network = denoiser(2, 8), ar_network(max_length=8)
    reads = Reads(own.network, network)
    made = sampler(own, Autoregressive(network, MASK, ahead=3, context=5, anew=anew))
    for row in range(4):
        for each in reads.tokens:
            each.clear()
        info = edlm.sample(pipelines.pipeline(made, 8), 1, seed=5, prompt=prompt, first_row=row)["info"]
        denoised, verified = reads.tokens
        assert info["denoiser_tokens"].sum() == sum(denoised)
        assert set(denoised) <= {5}
        assert info["energy_tokens"].sum() == sum(verified)
        assert info["calls"].sum() == len(denoised) + len(verified)
        close(info["energy_passes"], torch.tensor([sum(verified) / 8.0], dtype=torch.float64))


def equal_laws(length: int) -> tuple[denoisers.SubsDenoiser, Transformer]:
    """A denoiser and an AR model that both know nothing but how frequent a symbol is."""
    own, network = denoiser(0, length), ar_network(max_length=length)
    with torch.no_grad():
        for head in (own.network.head, network.head):
            head.weight.zero_()
            head.bias.copy_(torch.tensor([0.3, -0.2, 0.9, 0.0]))
    return own, network


@pytest.mark.parametrize("anew", [True, False])
def test_where_both_laws_are_one_every_draft_is_kept_and_one_token_more(anew) -> None:
    own, network = equal_laws(12)
    made = sampler(own, Autoregressive(network, MASK, ahead=3, anew=anew))
    info = edlm.sample(pipelines.pipeline(made, 12), 5)["info"]
    assert (info["rounds"] == 3).all()
    assert (info["energy_tokens"] == 4 + 4 + 4).all()


def test_drafts_that_are_kept_take_fewer_passes_of_the_denoiser_and_more_rounds() -> None:
    own, network = denoiser(2, 8), ar_network(max_length=8)
    anew, kept = (
        edlm.sample(pipelines.pipeline(sampler(own, Autoregressive(network, MASK, ahead=4, anew=each)), 8), 64)["info"]
        for each in (True, False)
    )
    assert kept["denoiser_tokens"].sum() < anew["denoiser_tokens"].sum()


def test_it_is_printed_as_the_algorithm_it_is() -> None:
    lines = repr(pipelines.pipeline(sampler(), LENGTH)).splitlines()
    assert lines[0] == "speculative, autoregressive, T=1, 4 tokens"
    assert lines[1].strip().startswith("in rounds, each with a pass of the correction's network")
    assert [line.split()[1] for line in lines[2:]] == ["denoise", "propose", "settle"]


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
