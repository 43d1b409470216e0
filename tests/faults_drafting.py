"""Faults of a causal network that drafts for itself, of counts that draft for it, and of its further training."""

from fault import Fault

_MASKS = "tests/nn/test_masks_behind_a_text.py::test_a_mask_reads_the_text_before_its_run_and_its_run"
_LOSS = "tests/objectives/test_drafting.py::test_the_loss_is_the_exact_likelihood_and_what_masks_predict_in_some_rows"
_LOOPS = "tests/samplers/test_drafters.py::test_it_writes_what_plain_loops_write"
_COUNTS = "tests/models/test_counts.py::test_it_is_the_law_by_hand_whatever_the_context"
_REMEMBERS = "tests/recipes/test_pretrain_ar.py::test_a_network_that_drafts_is_trained_resumed_and_remembers_how"

FAULTS = [
    Fault(
        "masks read the tokens that they draft",
        "nn/attention.py",
        "run.unsqueeze(-1) > run",
        "run.unsqueeze(-1) >= run",
        _MASKS,
    ),
    Fault(
        "a text reads the masks behind it",
        "nn/attention.py",
        "torch.zeros_like(own), causal",
        "own, causal",
        _MASKS,
    ),
    Fault(
        "masks beside a cache read only those before them",
        "nn/attention.py",
        "among[count - together :, count - together :] = True",
        "among[count - together :, count - together :] |= False",
        "tests/nn/test_masks_behind_a_text.py::test_beside_a_cache_it_is_the_same_pass",
    ),
    Fault(
        "runs of masks begin at the same places in every step",
        "objectives/drafting.py",
        "squeeze(-1) * self.ahead).long()",
        "squeeze(-1) * 0).long()",
        _LOSS,
    ),
    Fault(
        "padding is drafted",
        "objectives/drafting.py",
        "behind = counted[some] &",
        "behind = torch.ones_like(counted[some]) &",
        _LOSS,
    ),
    Fault(
        "the first token of a text is drafted from nothing",
        "objectives/drafting.py",
        "device=x_0.device) > 0)",
        "device=x_0.device) >= 0)",
        _LOSS,
    ),
    Fault(
        "masks are read behind a token that is not known",
        "samplers/drafters.py",
        "texts.line[flat[:, :1] + (texts.bos - 1)]",
        "texts.line[flat[:, :1] + texts.bos]",
        _LOOPS,
    ),
    Fault(
        "counts forget the first token of a text",
        "samplers/drafters.py",
        "(place >= 0).unbind(1)",
        "(place >= 1).unbind(1)",
        _LOOPS,
    ),
    Fault(
        "a draft by counts is verified as if it had been sure",
        "samplers/drafters.py",
        "written, log_p_own)",
        "written, 0.0 * log_p_own)",
        "tests/samplers/test_drafters.py::test_texts_have_the_law_of_the_ar_model",
    ),
    Fault(
        "counts leave out what was never seen",
        "models/counts.py",
        "law = lower * (count.unsqueeze(-1) / denominator)",
        "law = 0.0 * lower",
        _COUNTS,
    ),
    Fault(
        "counts go on from the shorter context alone",
        "models/counts.py",
        "found = torch.where(found == _NONE, self._longer(states, tokens), found)",
        "found = self._longer(states, tokens)",
        _COUNTS,
    ),
    Fault(
        "an n-gram at the end of a text taken for a context",
        "models/counts.py",
        "index_fill_(0, which[:-1], True)",
        "index_fill_(0, which, True)",
        _COUNTS,
    ),
    Fault(
        "counts of an n-gram that another token begins",
        "models/counts.py",
        "torch.where(self.codes[at] == wanted, self.longer[at], _NONE)",
        "self.longer[at]",
        _COUNTS,
    ),
    Fault(
        "drafts without tables that stay at one state",
        "samplers/drafters.py",
        "return self.counts.follow(states, tokens) if self.following is None",
        "return states if self.following is None",
        _LOOPS,
    ),
    Fault(
        "a run forgets how it drafts",
        "training/autoregression.py",
        '{"drafts": settings["drafts"]}',
        "{}",
        _REMEMBERS,
    ),
    Fault(
        "all weights of a model are trained where adapters are asked for",
        "training/autoregression.py",
        'None if adapter is None else (adapter["rank"], adapter["alpha"])',
        "None",
        "tests/recipes/test_pretrain_ar.py::test_adapters_alone_are_trained_where_they_are_asked_for",
    ),
    Fault(
        "texts of other counts are gone on with",
        "evaluation/generation.py",
        'kept["counted"] = corpora.text_files(counted).fingerprint',
        'kept["counted"] = counted',
        "tests/recipes/test_generate_drafts.py::test_another_text_to_count_in_gives_other_texts_another_name",
    ),
    Fault(
        "a network that looks ahead draws texts of no law",
        "samplers/ahead.py",
        "    autoregressive.check_ar(network, mask_id, bos_id)",
        "    pass",
        "tests/samplers/test_drafters.py::test_what_cannot_be_drawn_is_refused",
    ),
    Fault(
        "an AR model begins at whatever was drawn before",
        "training/autoregression.py",
        '    torch.manual_seed(settings["seed"])',
        "    pass",
        "tests/recipes/test_pretrain_ar.py::test_a_network_of_ours_begins_as_its_seed_says",
    ),
]
