"""An AR model's own law with drafts of its own masks, and of counts: the texts of plain loops, and the law."""

import pytest
import torch
from drafting import LENGTH, MASK, PROMPTS, SEQUENCES, SYMBOLS, ar_network, close, heeding, log_prob
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import index_of
from scipy import stats
from torch import Tensor

from edlm.models.counts import Counts
from edlm.nn import drafting
from edlm.nn.attention import Cache
from edlm.nn.networks import Transformer
from edlm.process import categorical, noise
from edlm.process.noise import Stream
from edlm.samplers import ahead, drafters
from edlm.samplers.drafters import Drafter

TEXT = torch.randint(0, SYMBOLS, (60,), generator=torch.Generator().manual_seed(4))


def counts(order: int = 3) -> Counts:
    return Counts(TEXT, order, SYMBOLS + 1, MASK)


def drafter(kind: str, network: Transformer, count: int, temperature: float = 1.0) -> Drafter:
    if kind == "masks":
        return drafters.OfMasks(network, MASK, count, temperature)
    made = drafters.OfCounts(counts(), count, temperature)
    assert made.laws is not None
    if kind == "counts without tables":
        made.laws = made.following = None
    return made


class Slow:
    """A text by plain loops: no cache, no batch, whole passes for every token that is asked about."""

    def __init__(self, network: Transformer, made: Drafter, start: Tensor, bos: bool, seed: int, row: int) -> None:
        self.network, self.made, self.start, self.text, self.bos = network, made, start, start.clone(), bos
        self.uniforms = noise.uniforms(
            torch.tensor(seed), torch.tensor(row), 0, Stream.PROPOSAL, torch.arange(len(start)), count=3
        )
        self.rounds = 0

    def law(self, logits: Tensor) -> Tensor:
        return categorical.cooled(logits[:MASK], self.made.law.temperature).softmax(-1)

    def read(self, tokens: Tensor) -> Tensor:
        return torch.cat([torch.tensor([MASK] * self.bos).long(), tokens])

    def wanted(self, place: int) -> Tensor:
        """`p_AR(x | what stands left of a place)`, (m,)."""
        return self.law(self.network.head(self.network(self.read(self.text[:place])[None])[0, -1]))

    def proposal(self, place: int, done: int) -> Tensor:
        """The drafter's law at a place where so many tokens are known."""
        if isinstance(self.made, drafters.OfCounts):
            model = self.made.counts
            return self.law(model.logits(model.after(self.text[None, :place]))[0])
        known = self.read(self.text[:done])
        tokens = torch.cat([known, torch.full((self.made.ahead - 1,), MASK)])
        seen = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
        seen[len(known) :, len(known) :] = True
        states, _ = self.network.trunk(self.network.embedding(tokens[None]), mask=seen)
        return self.law(self.network.head(states[0, len(known) - 1 + place - done]))

    def draw(self, law: Tensor, place: int, number: int) -> int:
        return int(categorical.inverse_cdf(law.log()[None], self.uniforms[None, place, number, None]).tokens)

    @torch.no_grad()
    def write(self) -> list[int]:
        masks = self.start == MASK
        end, done = 1 + int(masks.nonzero().max()), int(masks.nonzero().min())
        while done < end:
            laws = {}
            for place in range(done, min(done + self.made.ahead, end)):
                if masks[place]:
                    laws[place] = self.proposal(place, done)
                    self.text[place] = self.draw(laws[place], place, 0)
            place = done
            while place < min(done + self.made.ahead, end):
                if masks[place]:
                    p, q, token = laws[place], self.wanted(place), int(self.text[place])
                    if self.uniforms[place, 1] * p[token] >= q[token]:
                        missing = (q - p).clamp(min=0.0).cumsum(-1)
                        self.text[place] = int((missing <= self.uniforms[place, 2] * missing[-1]).sum())
                        break
                place += 1
            else:
                if place < end and masks[place]:
                    self.text[place] = self.draw(self.wanted(place), place, 2)
            done, self.rounds = min(place + 1, end), self.rounds + 1
        return self.text.tolist()


@settings(max_examples=40)
@given(
    st.sampled_from(["masks", "counts", "counts without tables"]),
    st.integers(1, 9),
    st.sampled_from([1.0, 0.6]),
    st.integers(0, 2**62),
    st.integers(1, 4),
    st.sampled_from(PROMPTS),
    st.booleans(),
)
def test_it_writes_what_plain_loops_write(kind, count, temperature, seed, b, prompt, with_bos) -> None:
    """Rows that keep other numbers of drafts and end at other times; prompts on both sides and in between."""
    length, network = 8, ar_network(max_length=8)
    if not with_bos:
        prompt = torch.tensor([1]) if prompt is None else torch.cat([torch.tensor([1]), prompt[1:]])
    made = drafter(kind, network, count, temperature)
    out = ahead.sample(network, made, b, length, MASK, MASK if with_bos else None, seed=seed, prompt=prompt)
    start = torch.full((length,), MASK)
    if prompt is not None:
        start[: len(prompt)] = prompt
    slow = [Slow(network, made, start, with_bos, seed, row) for row in range(b)]
    assert out.tokens.tolist() == [each.write() for each in slow]
    assert out.rounds.tolist() == [each.rounds for each in slow]


@pytest.mark.parametrize("kind", ["masks", "counts", "counts without tables"])
def test_texts_have_the_law_of_the_ar_model(kind: str) -> None:
    """20,000 texts of 81; wrong with probability 1e-6. The drafts alone have another law."""
    n, network = 20_000, ar_network()
    with torch.no_grad():
        network.head.weight.mul_(0.5)
        network.head.bias.mul_(0.5)
    out = ahead.sample(network, drafter(kind, network, 3), n, LENGTH, MASK, MASK, seed=11)
    law = log_prob(SEQUENCES, network).sum(-1).exp()
    found = index_of(out.tokens, SYMBOLS).bincount(minlength=len(law))
    assert stats.chisquare(found.numpy(), n * law.numpy()).pvalue > 1e-6
    assert (n * law).min() > 5


@pytest.mark.parametrize("kind", ["masks", "counts", "counts without tables"])
def test_a_text_does_not_depend_on_those_beside_it(kind: str) -> None:
    network = heeding(8, 2.0)
    made = drafter(kind, network, 3)
    together = ahead.sample(network, made, 5, 8, MASK, MASK, seed=3)
    alone = [ahead.sample(network, made, 1, 8, MASK, MASK, seed=3, first_row=row) for row in range(5)]
    for name, value in together._asdict().items():
        assert torch.equal(value, torch.cat([getattr(each, name) for each in alone])), name


def test_what_is_told_is_what_the_network_has_read() -> None:
    network = ar_network(max_length=8)
    read: list[int] = []
    layer = network.trunk.blocks[0].attention.qkv
    layer.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[:-1].numel()))
    for kind in ("masks", "counts"):
        for prompt in PROMPTS:
            read.clear()
            out = ahead.sample(network, drafter(kind, network, 3), 1, 8, MASK, MASK, seed=5, prompt=prompt)
            assert int(out.draft_tokens + out.ar_tokens) == sum(read)
            assert int(out.calls) == len(read)


def test_the_first_draft_of_masks_is_always_accepted_and_counts_that_are_the_law_are_too() -> None:
    network = ar_network(max_length=12)
    for seed in range(5):
        out = ahead.sample(network, drafters.OfMasks(network, MASK, 4), 4, 12, MASK, MASK, seed=seed)
        assert (out.rounds <= 6).all(), "two tokens a round at least: the first draft and what follows it"
    bigram = heeding(12, 0.0)  # a network that reads nothing but its place's embedding knows only frequencies
    with torch.no_grad():
        bigram.head.weight.zero_()
        bigram.head.bias.copy_(torch.tensor([0.3, -0.2, 0.9, 0.0]))
        model = counts(1)
        model.unigram = torch.cat([bigram.head.bias[:MASK].softmax(-1), torch.zeros(1)])[None]
    out = ahead.sample(bigram, drafters.OfCounts(model, 3), 5, 12, MASK, MASK)
    assert (out.rounds == 3).all()
    close(out.ar_tokens.double(), torch.full((5,), 12.0, dtype=torch.float64))


def test_tables_are_made_of_few_laws_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many numbers as are kept, and one less."""
    numbers = counts().num_states * (SYMBOLS + 1)
    for most, there in ((numbers, True), (numbers - 1, False)):
        monkeypatch.setattr(drafters, "_KEPT", most)
        made = drafters.OfCounts(counts(), 3)
        assert (made.laws is not None, made.following is not None) == (there, there)


@pytest.mark.parametrize("kind", ["counts", "counts without tables"])
def test_nothing_is_made_beside_the_device_of_the_text(kind: str) -> None:
    """Where a tensor without a device of its own is on none, whatever is not made beside the text cannot be read."""
    network = ar_network(max_length=8)
    expected = ahead.sample(network, drafter(kind, network, 3), 2, 8, MASK, MASK, seed=5)
    with torch.device("meta"):
        found = ahead.sample(network, drafter(kind, network, 3), 2, 8, MASK, MASK, seed=5)
    assert torch.equal(found.tokens, expected.tokens)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")
@pytest.mark.parametrize("kind", ["masks", "counts", "counts without tables"])
def test_on_a_device_drafts_give_the_texts_of_the_cpu(kind: str) -> None:
    network = ar_network(max_length=8)
    expected = ahead.sample(network, drafter(kind, network, 3), 4, 8, MASK, MASK, seed=5).tokens
    on_device = network.to("cuda")
    made = drafter(kind, on_device, 3)
    if isinstance(made, drafters.OfCounts):
        made = drafters.OfCounts(Counts(TEXT.to("cuda"), 3, SYMBOLS + 1, MASK), 3)
    assert torch.equal(ahead.sample(on_device, made, 4, 8, MASK, MASK, seed=5).tokens.cpu(), expected)


def test_what_cannot_be_drawn_is_refused() -> None:
    network = ar_network(max_length=8)
    with pytest.raises(ValueError, match="anew = False keeps drafts"):
        ahead.step(drafter("counts", network, 3), network, MASK, MASK, anew=False)
    with pytest.raises(ValueError, match="length = 9 must be at most 8"):
        ahead.sample(network, drafter("masks", network, 3), 1, 9, MASK, MASK)
    with pytest.raises(ValueError, match="without a bos_id the first token has no law"):
        ahead.sample(network, drafter("masks", network, 3), 1, 8, MASK, None)
    with pytest.raises(ValueError, match="a Linear is not read with a cache"):
        ahead.sample(torch.nn.Linear(2, 2), drafter("masks", network, 3), 1, 8, MASK, MASK)
    for kind in ("masks", "counts"):
        with pytest.raises(ValueError, match="ahead = 0 must be at least 1"):
            drafter(kind, network, 0)
    both_ways = ar_network(max_length=8, causal=False)
    with pytest.raises(ValueError, match="needs a causal network"):
        ahead.sample(both_ways, drafter("masks", both_ways, 3), 1, 8, MASK, MASK)
    with pytest.raises(ValueError, match=r"counts must be models\.counts\.Counts of a text, not of class Tensor"):
        drafters.OfCounts(TEXT, 3)  # type: ignore[arg-type]
    other = drafters.OfCounts(Counts(TEXT, 1, 9, 8), 3)
    with pytest.raises(ValueError, match="the drafter knows 9 ids, and the network 4"):
        ahead.sample(network, other, 1, 8, MASK, MASK)
    with torch.no_grad():
        network.head.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="logits are not finite in row 0"):
        ahead.sample(network, drafter("counts", network, 3), 2, 8, MASK, MASK)


def test_masks_are_read_behind_all_that_is_known_of_the_longest_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cache holds up to there, so that no row's masks lack what stands before them."""
    seen: list[tuple[list[int], int]] = []
    after = drafting.after

    def noting(network: Transformer, last: Tensor, masks: int, mask_id: int, start: Tensor, cache: Cache) -> Tensor:
        seen.append((start.tolist(), cache[0].shape[3]))
        return after(network, last, masks, mask_id, start, cache)

    monkeypatch.setattr(drafting, "after", noting)
    network = ar_network(max_length=8)
    prompt = torch.full((3, 8), MASK)
    prompt[1, :2], prompt[2, :5] = 0, 1
    ahead.sample(network, drafters.OfMasks(network, MASK, 2), 3, 8, MASK, MASK, prompt=prompt)
    assert seen[0] == ([0, 2, 5], 5)
    assert all(length == max(start) for start, length in seen)
