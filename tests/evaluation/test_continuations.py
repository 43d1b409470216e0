"""Continuations asked of a model: their likelihood, exact or a bound, and what is written up to a stop."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import edlm
from edlm.data import vocabulary
from edlm.evaluation import continuations
from edlm.evaluation.continuations import Reading, Wanted
from edlm.likelihood import nelbo
from edlm.models import autoregressive
from edlm.nn.networks import Transformer
from edlm.weights import checkpoints
from edlm.weights.hub import Model

LETTERS = vocabulary.characters("abc ", specials=["bos", "eos"])
LENGTH = 12
NOTES = {"schedule": {"_component_": "edlm.schedules.log_linear"}, "time_conditioning": False}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """A denoiser and an AR model of random weights, one without a bos, and a baseline."""
    folder, found = tmp_path_factory.mktemp("models"), {}
    every = {"denoiser": NOTES, "ar": {"bos_id": LETTERS.bos_id}, "without_bos": {}}
    every["baseline"] = {**NOTES, "parameterisation": "d3pm"}
    for number, (name, notes) in enumerate(every.items()):
        torch.manual_seed(number)
        sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "conditioning_size": 8}
        network = Transformer(LETTERS.size, LENGTH, **sizes, causal="schedule" not in notes)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.15)
        checkpoints.save_network(folder / name, network.eval(), LETTERS, notes)
        found[name] = edlm.from_pretrained(folder / name)
    return found


def ids(text: str) -> Tensor:
    return LETTERS.encode(text)


def ar_nats(model: Model, text: str, given: int) -> float:
    log_p = autoregressive.ar_log_prob(model.network, ids(text).unsqueeze(0), LETTERS.mask_id, model.bos_id)
    return float(log_p[0, given:].detach().double().sum())


def test_white_space_at_the_end_of_a_context_belongs_to_what_follows() -> None:
    first, second = continuations.encode_pair(LETTERS, "ab ", "ca")
    assert (first.tolist(), second.tolist()) == (ids("ab").tolist(), ids(" ca").tolist())
    first, second = continuations.encode_pair(LETTERS, "", "ca")
    assert (len(first), second.tolist()) == (0, ids("ca").tolist())


def test_a_pair_is_cut_where_the_ids_of_the_context_end() -> None:
    """Both are encoded together, so that a merge reaches no further than it does in a text."""
    words = vocabulary.train_bpe(["the hat the hat the cat"] * 5, size=264)
    for context, continuation in (("the hat", " the cat"), ("the ", "hat"), ("th", "e cat")):
        first, second = continuations.encode_pair(words, context, continuation)
        assert first.tolist() == words.encode(context.rstrip()).tolist()
        assert second.tolist() == words.encode(context + continuation)[len(first) :].tolist()


def test_an_autoregressive_model_scores_exactly_whatever_stands_beside_it(models: dict[str, Model]) -> None:
    model = models["ar"]
    pairs = [("ab", "ca"), ("", "abc"), ("a", "bca"), ("cab", "a b"), ("ab", "cb")]
    asked = [(ids(context), ids(text)) for context, text in pairs]
    for size in (1, 4):
        found = continuations.score(Reading(model, batch_size=size), asked)
        for (context, text), answer in zip(pairs, found, strict=True):
            assert answer.log_prob == pytest.approx(ar_nats(model, context + text, len(context)), abs=1e-5)
            assert answer.standard_error == 0.0
    assert Reading(model).likelihood == "exact, of an autoregressive model"


def test_a_context_that_is_too_long_is_cut_on_its_left(models: dict[str, Model]) -> None:
    long = "abc " * 5
    (found,) = continuations.score(Reading(models["ar"]), [(ids(long), ids("cab"))])
    cut = long[-(LENGTH - 3) :]
    assert found.log_prob == pytest.approx(ar_nats(models["ar"], f"{cut}cab", len(cut)), abs=1e-5)
    with pytest.raises(ValueError, match=r"^a continuation of 13 tokens must have 1 to 12$"):
        continuations.score(Reading(models["ar"]), [(ids("a"), ids("a" * 13))])
    with pytest.raises(ValueError, match=r"^a continuation of 0 tokens must have 1 to 12$"):
        continuations.score(Reading(models["denoiser"]), [(ids("a"), ids(""))])


def test_a_denoiser_bounds_and_more_draws_come_closer_to_the_mean(models: dict[str, Model]) -> None:
    model, pair = models["denoiser"], (ids("ab"), ids("cab"))
    text, scored = torch.cat(pair).unsqueeze(0), torch.arange(5) >= 2
    rows = text.expand(4000, -1), scored.expand(4000, -1)
    draws = nelbo.nelbo(model.denoiser, model.schedule, rows[0], torch.tensor(9), torch.arange(4000), rows[1]) * 3
    many = Reading(model, num_draws=512)
    (found,) = continuations.score(many, [pair])
    assert abs(found.log_prob + float(draws.mean())) < 5 * math.hypot(found.standard_error, float(draws.std()) / 63)
    (few,) = continuations.score(Reading(model, num_draws=8), [pair])
    assert few.standard_error > 3 * found.standard_error
    assert many.likelihood == "a lower bound, the negative NELBO of the denoiser, a mean of 512 draws"
    assert not many.is_exact


def test_a_plan_that_is_a_rule_is_exact_and_sums_to_one(models: dict[str, Model]) -> None:
    for count in (1, 2):
        reading = Reading(models["denoiser"], plan="left_to_right", tokens_per_pass=count)
        symbols = range(LETTERS.size - 1)  # all but the mask
        pairs = [(ids("ca"), torch.tensor([a, b])) for a in symbols for b in symbols]
        found = continuations.score(reading, pairs)
        assert sum(math.exp(answer.log_prob) for answer in found) == pytest.approx(1.0, abs=1e-5)
        assert sum(answer.greedy for answer in found) == 1
        assert reading.is_exact
    assert reading.likelihood == "exact, of the denoiser written left to right, 2 a pass"


def test_answers_depend_on_no_other_request_and_choices_share_their_draws(models: dict[str, Model]) -> None:
    reading = Reading(models["denoiser"], num_draws=4)
    pairs = [(ids("ab"), ids("cab")), (ids("b"), ids("cab")), (ids("ab"), ids("cac"))]
    together = continuations.score(reading, pairs)
    assert continuations.score(reading, pairs[::-1]) == together[::-1]
    assert continuations.score(reading, pairs[:1]) == together[:1]
    again = continuations.score(Reading(models["denoiser"], num_draws=4, seed=1), pairs[:1])
    assert again != together[:1]
    keys = [continuations._key(reading, context) for context, _ in pairs]
    assert keys[0] == keys[2] != keys[1]


def test_a_whole_text_is_scored_once_in_windows(models: dict[str, Model]) -> None:
    text = "abc cab bca aab cc"  # 18 characters: 12, and 6 after one that is given
    model = models["ar"]
    found = continuations.score_whole(Reading(model), text)
    second = ar_nats(model, text[-12:], 6)
    assert found.log_prob == pytest.approx(ar_nats(model, text[:12], 0) + second, abs=1e-4)
    bound = continuations.score_whole(Reading(models["denoiser"], num_draws=16), text)
    assert bound.log_prob < 0
    assert bound.standard_error > 0
    assert continuations.score_whole(Reading(model), "") == (0.0, 0.0, True)
    with pytest.raises(ValueError, match=r"^without a bos_id the first token of a text has no law of its own"):
        continuations.score_whole(Reading(models["without_bos"]), text)


@pytest.mark.parametrize("kind", ["ar", "denoiser"])
def test_texts_are_written_in_blocks_up_to_a_stop(kind: str, models: dict[str, Model]) -> None:
    reading = Reading(models[kind], block_length=5)
    whole = [continuations.complete(reading, "abc", Wanted(most=40), number) for number in range(12)]
    assert len(set(whole)) > 1  # a repetition has noise of its own
    assert max(map(len, whole)) > 5  # more than a block
    for number, text in enumerate(whole):
        stops = ("c", "b")
        stopped = continuations.complete(reading, "abc", Wanted(stops, 40), number)
        at = min((text.index(stop) for stop in stops if stop in text), default=len(text))
        assert stopped == text[:at]
    assert continuations.complete(reading, "abc", Wanted(most=40)) == whole[0]


def test_an_end_of_text_ends_it(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    ending = torch.tensor([0, 1, LETTERS.eos_id, 2])
    monkeypatch.setattr(continuations, "_block", lambda *_: ending)
    assert continuations.complete(Reading(models["denoiser"], block_length=4), "c", Wanted(most=8)) == "ab"


@pytest.mark.parametrize("kind", ["ar", "denoiser"])
def test_without_a_temperature_the_most_likely_text_is_written(kind: str, models: dict[str, Model]) -> None:
    more = {} if kind == "ar" else {"plan": "left_to_right"}
    reading = Reading(models[kind], block_length=4, **more)
    cold = Wanted(most=4, temperature=0.0)
    found = continuations.complete(reading, "abc", cold)
    assert {continuations.complete(reading, "abc", cold, number) for number in range(4)} == {found}
    if len(found) == 4:
        (answer,) = continuations.score(reading, [(ids("abc"), ids(found))])
        assert answer.greedy
    if kind == "ar":
        with pytest.raises(ValueError, match=r"^top_p = 0\.9 needs a denoiser"):
            continuations.complete(reading, "abc", Wanted(nucleus=0.9))


def test_what_cannot_be_asked_is_refused_by_name(models: dict[str, Model]) -> None:
    for name in ("num_draws", "block_length", "batch_size"):
        with pytest.raises(ValueError, match=f"^{name} = 0 must be at least 1$"):
            Reading(models["denoiser"], **{name: 0})
    with pytest.raises(ValueError, match=r"count = 0 must be at least 1$|tokens_per_pass = 0 must be at least 1$"):
        Reading(models["denoiser"], tokens_per_pass=0)
    with pytest.raises(ValueError, match=r"^seed = -1 must be at least 0$"):
        Reading(models["denoiser"], seed=-1)
    with pytest.raises(ValueError, match=r"baseline holds a model of kind 'd3pm', not 'subs'$"):
        Reading(models["baseline"])
    with pytest.raises(ValueError, match="plan"):
        Reading(models["denoiser"], plan="right_to_left")


def test_models_of_a_folder_s_path_are_read_as_they_are_saved(models: dict[str, Model]) -> None:
    assert Path(models["ar"].found.path).name == "ar"
    assert Reading(models["ar"]).network.arguments["conditioning_size"] == 0
