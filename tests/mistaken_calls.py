"""Mistakes that people make in Python, and the sentence that each of them gets."""

# What the calls are made with.
SETUP = """\
import edlm, torch
from edlm.samplers import corrections, rounds
from tensordict.nn import TensorDictModule

letters = edlm.vocabulary.characters("ab ")  # the mask is id 3
sizes = dict(max_length=8, hidden_size=16, num_layers=1, num_heads=2)
network = edlm.networks.Transformer(letters.size, **sizes).eval()
of_pairs = edlm.networks.EnergyNetwork(letters.size, **sizes).eval()
denoiser = edlm.denoisers.subs(network, mask_id=letters.mask_id)
sampler = edlm.samplers.Sampler(denoiser, edlm.plans.Grid(4))
pipeline = edlm.pipelines.pipeline(sampler, length=8)


def corrected(weigh):
    "A pipeline whose energy of candidates (b, k, l) is a function of one's own."
    energy = edlm.energies.declare(TensorDictModule(weigh, in_keys=["candidates"], out_keys=["energy"]), ("draft",))
    return edlm.pipelines.pipeline(sampler.replace(correction=corrections.OfEnergy(energy), candidates=2), length=8)
"""
CALLS: dict[str, str] = {
    'edlm.sample(pipeline, prompt="ab _")': (
        "prompt must be a tensor of token ids, as vocabulary.encode_prompt(text) gives, not of class str"
    ),
    "edlm.sample(pipeline, prompt=[0, 1])": (
        "prompt must be a tensor of token ids, as vocabulary.encode_prompt(text) gives, not of class list"
    ),
    "edlm.sample(pipeline, prompt=torch.tensor([0.0, 1.0]))": (
        "prompt must be a tensor of token ids, as vocabulary.encode_prompt(text) gives, not of torch.float32"
    ),
    "edlm.sample(pipeline, prompt=torch.tensor([True, False]))": (
        "prompt must be a tensor of token ids, as vocabulary.encode_prompt(text) gives, not of torch.bool"
    ),
    "edlm.sample(pipeline, prompt=torch.tensor([0, 4]))": "prompt holds token id 4, outside the vocabulary 0..3",
    "edlm.sample(pipeline, prompt=torch.tensor([0, -1]))": ("prompt holds token id -1, outside the vocabulary 0..3"),
    "edlm.sample(pipeline, prompt=torch.zeros(9, dtype=torch.int64))": (
        "prompt of shape (1, 9) does not fit: it must be (l,) or (1, l), l at most 8"
    ),
    "edlm.sample(pipeline, prompt=torch.zeros(2, 3, dtype=torch.int64))": (
        "prompt of shape (2, 3) does not fit: it must be (l,) or (1, l), l at most 8"
    ),
    "edlm.sample(pipeline, seed=-1)": "seed = -1 must be at least 0",
    "edlm.sample(pipeline, seed=0.5)": "seed = 0.5 must be a whole number of at least 0",
    "edlm.sample(pipeline, seed=2**63)": "seed = 9223372036854775808 must be at most 9223372036854775807",
    "edlm.sample(pipeline, seed=None)": "seed = None must be a whole number of at least 0",
    "edlm.sample(pipeline, 0)": "num_samples = 0 must be at least 1",
    "edlm.sample(pipeline, 1.5)": "num_samples = 1.5 must be a whole number of at least 1",
    "edlm.sample(pipeline, True)": "num_samples = True must be a whole number of at least 1",
    'edlm.sample(pipeline, "3")': "num_samples = '3' must be a whole number of at least 1",
    "edlm.sample(pipeline, first_row=-1)": "first_row = -1 must be at least 0",
    "edlm.sample(pipeline, callback=3)": (
        "callback must be a function of the state and of the pass's info, not of class int"
    ),
    "edlm.sample(sampler)": ("pipeline must be one, as pipelines.pipeline(sampler, length) is, not of class Sampler"),
    "edlm.sample(network)": (
        "pipeline must be one, as pipelines.pipeline(sampler, length) is, not of class Transformer"
    ),
    (
        "edlm.sample(edlm.pipelines.pipeline(edlm.samplers.Sampler(edlm.denoisers.subs(edlm.networks.Tran"
        "sformer(4, **sizes, dropout=0.1), 3)), 8))"
    ): (
        "dropout is on at module.denoise.module.network.trunk.blocks.0.dropout: call .eval() on the "
        "networks before sampling"
    ),
    "edlm.extend(pipeline, 16, 1.5)": "stride = 1.5 must be a whole number",
    "edlm.extend(pipeline, 16, 8)": "stride = 8 must lie in 1..7: a window has 8 tokens",
    "edlm.extend(pipeline, 4, 2)": "length = 4 must be at least that of the pipeline, 8",
    "edlm.extend(pipeline, 12.5, 2)": "length = 12.5 must be a whole number",
    'edlm.accelerate(pipeline, "fast")': "mode = 'fast' must be one of eager, compile, cudagraph",
    'edlm.accelerate(sampler, "eager")': (
        "pipeline must be one, as pipelines.pipeline(sampler, length) is, not of class Sampler"
    ),
    "edlm.pipelines.pipeline(denoiser, 8)": (
        "sampler must be one, as samplers.Sampler(denoiser) is, not of class SubsDenoiser"
    ),
    "edlm.pipelines.pipeline(sampler, 9)": "length = 9 must lie in 1..8, the longest the denoiser was built for",
    "edlm.pipelines.pipeline(sampler, 4.0)": "length = 4.0 must be a whole number",
    "edlm.samplers.Sampler(network)": (
        "denoiser must be one, as denoisers.subs(network, mask_id) is, not of class Transformer"
    ),
    'edlm.samplers.Sampler("runs/tiny/denoiser")': (
        "denoiser must be one, as denoisers.subs(network, mask_id) is, not of class str"
    ),
    "edlm.samplers.Sampler(denoiser, 4)": (
        "plan = 4 must be of edlm.plans, as plans.Grid(8) is, or of one's own, drawn (`draw`) or from "
        "the pass (`choose`)"
    ),
    'edlm.samplers.Sampler(denoiser, "grid")': (
        "plan = 'grid' must be of edlm.plans, as plans.Grid(8) is, or of one's own, drawn (`draw`) or "
        "from the pass (`choose`)"
    ),
    "edlm.plans.Grid(0)": "num_steps = 0 must be at least 1",
    "edlm.plans.Grid(2.5)": "num_steps = 2.5 must be a whole number of at least 1",
    "edlm.plans.TokensPerPass(True)": "tokens_per_pass = True must be a whole number of at least 1",
    'edlm.plans.EntropyBound("a")': "gamma = 'a' must be a number",
    'edlm.plans.Ranked(1, by="margn")': "by = 'margn' must be one of entropy, confidence, margin",
    "sampler.replace(candidates=4)": "candidates = 4 needs a correction: without one nothing is weighed",
    "sampler.replace(candidate=4)": "candidate: no axis of a sampler; did you mean 'candidates'?",
    'sampler.replace(selection="srr")': "selection = 'srr' must be one of sir, imh, greedy, speculative",
    "sampler.replace(window=(1, 0))": "window = (1, 0) must satisfy 0 <= low <= high <= 1",
    "sampler.replace(window=3)": "window = 3 must be two times (low, high) with 0 <= low <= high <= 1",
    "sampler.replace(proposal=0.5)": ("proposal must be samplers.Proposal(temperature, nucleus), not of class float"),
    "sampler.replace(proposal=edlm.samplers.Proposal(temperature=0))": (
        "proposal.temperature = 0 must be positive and finite (greedy selection has a rule of its own)"
    ),
    'sampler.replace(proposal=edlm.samplers.Proposal(temperature="warm"))': (
        "proposal.temperature = 'warm' must be a number"
    ),
    'sampler.replace(remasking="cap")': "remasking = 'cap' must be None or a rule, as remasking.Cap() is",
    "sampler.replace(correction=of_pairs)": (
        "correction must be None or one of edlm.samplers.corrections, as corrections.OfEnergy(energy) "
        "is, not of class EnergyNetwork"
    ),
    "sampler.replace(correction=edlm.energies.zero())": (
        "correction must be None or one of edlm.samplers.corrections, as corrections.OfEnergy(energy) "
        "is, not of class TensorDictModule"
    ),
    "sampler.replace(correction=corrections.OfEnergy(edlm.energies.zero()), candidates=1.5)": (
        "candidates = 1.5 must be a whole number of at least 1"
    ),
    "rounds.UntilEss(2.0, 2.5)": "at_most = 2.5 must be a whole number",
    "corrections.OfEnergy(of_pairs)": (
        "energy must be one, as energies.learned(network) is, not of class EnergyNetwork"
    ),
    "corrections.OfEnergy(lambda candidates: candidates.sum(-1))": (
        "energy must be one, as energies.learned(network) is, not of class function"
    ),
    'corrections.OfEnergy(edlm.energies.zero(), "drafts")': "scope = 'drafts' must be one of draft, transition",
    "corrections.OfEnergy(edlm.energies.zero(), temperature=0)": (
        "temperature = 0 must be positive and finite (greedy selection has a rule of its own)"
    ),
    "edlm.denoisers.subs(of_pairs, mask_id=3)": (
        "network must be one with a vocabulary head, as networks.Transformer is, not of class EnergyNetwork"
    ),
    'edlm.denoisers.subs("runs/tiny/denoiser", mask_id=3)': (
        "network must be one with a vocabulary head, as networks.Transformer is, not of class str"
    ),
    "edlm.denoisers.subs(network, mask_id=4)": "mask_id = 4 is outside the network's vocabulary of 4",
    "edlm.denoisers.subs(network, mask_id=-1)": "mask_id = -1 is outside the network's vocabulary of 4",
    "edlm.denoisers.subs(network, mask_id=3.0)": "mask_id = 3.0 must be a whole number",
    "edlm.denoisers.subs(network, mask_id=letters)": (
        'mask_id = Vocabulary(tokenizer=Tokenizer(version="1.0", truncation=None, padding=None, add... '
        "must be a whole number"
    ),
    "edlm.denoisers.subs(trained, mask_id=0)": (
        "mask_id = 0 must be 3, as in the vocabulary that the network was trained with"
    ),
    'edlm.denoisers.subs(network, 3, told="log_linear")': (
        "schedule must be one, as schedules.log_linear() is, not of class str"
    ),
    "edlm.energies.learned(network)": (
        "network must be one that reads pairs of texts, as networks.EnergyNetwork is, not of class Transformer"
    ),
    "edlm.energies.learned_transition(network)": (
        "network must be one that reads pairs of texts, as networks.EnergyNetwork is, not of class Transformer"
    ),
    "edlm.energies.residual_ar(network, mask_id=3, bos_id=3, carry_over=False)": (
        "an autoregressive model needs a causal network: causal=True (trunk.blocks.0.attention looks ahead)"
    ),
    "edlm.energies.product(network)": (
        "experts[0] must be one, as energies.learned(network) is, not of class Transformer"
    ),
    'edlm.energies.scaled(edlm.energies.zero(), "half")': "factor = 'half' must be a number",
    "edlm.sample(corrected(lambda candidates: candidates.float()))": (
        "energy of shape (1, 2, 8) must be of shape (b, k) = (1, 2), one number for each candidate"
    ),
    "edlm.sample(corrected(lambda candidates: candidates.float().sum((1, 2))))": (
        "energy of shape (1,) must be of shape (b, k) = (1, 2), one number for each candidate"
    ),
    "edlm.sample(corrected(lambda candidates: candidates.sum(-1) > 3))": (
        "energy of torch.bool of shape (1, 2) must be of shape (b, k) = (1, 2), one number for each candidate"
    ),
    'edlm.sample(corrected(lambda candidates: candidates.sum(-1) * float("nan")))': (
        "the energy is nan in pass 0 of text 0, at t = 1"
    ),
    'edlm.sample(corrected(lambda candidates: candidates.sum(-1) - float("inf")))': (
        "the energy is -inf in pass 0 of text 0, at t = 1"
    ),
    "letters.decode(edlm.sample(pipeline))": (
        'ids must be a tensor of token ids, as edlm.sample(...)["tokens"] is, not of class TensorDict'
    ),
    "letters.decode([0, 1])": (
        'ids must be a tensor of token ids, as edlm.sample(...)["tokens"] is, not of class list'
    ),
    "letters.decode(torch.tensor([0.0, 1.0]))": (
        'ids must be a tensor of token ids, as edlm.sample(...)["tokens"] is, not of torch.float32'
    ),
    "letters.decode(torch.tensor([0, 9]))": "decode: id 9 must lie in [0, 4)",
    "letters.encode(42)": "text must be one text (encode_documents takes several), not of class int",
    'letters.encode(["a", "b"])': "text must be one text (encode_documents takes several), not of class list",
    'letters.encode("abc")': "character 'c' at offset 2 is not in the vocabulary, only ' ab'",
    'letters.encode_documents("ab a")': "documents must be several texts, as a list of them is, not one text",
    'letters.encode_prompt(["ab", "_"])': ("text must be a text, with a _ for each token of a gap, not of class list"),
    'edlm.vocabulary.characters(["a", "b"])': "alphabet must be a text of distinct characters, not of class list",
    'edlm.vocabulary.characters("abca")': "alphabet = 'abca' must be distinct characters, at least one",
    'edlm.vocabulary.train_bpe("the cat and the hat", size=260)': (
        "documents must be several texts, as a list of them is, not one text"
    ),
    'edlm.vocabulary.train_bpe(["the cat and the hat"], size=10)': "size = 10 must be at least 258",
    'edlm.vocabulary.train_bpe(["the cat and the hat"], size=260.5)': (
        "size = 260.5 must be a whole number of at least 1"
    ),
    'edlm.vocabulary.load_vocabulary("nowhere")': (
        "nowhere/tokenizer.json: expected a tokenizer.json of `tokenizers`; No such file"
    ),
    'edlm.vocabulary.from_tokenizer_json("nowhere.json")': (
        "nowhere.json: expected a tokenizer.json of `tokenizers`; No such file"
    ),
    'edlm.corpora.text_files("nowhere")': "nowhere: no such file",
    "edlm.corpora.text_files(3)": "path must be a path, not of class int",
    'edlm.corpora.load_blocks("my text", letters, 8)': (
        "corpus must be one, as corpora.text_files(path) is, not of class str"
    ),
    'edlm.corpora.load_blocks(edlm.corpora.Corpus(["ab"], ["ab"], ["ab"]), letters, 8)': (
        "train: 2 tokens are fewer than one block of length = 8"
    ),
    'edlm.corpora.load_blocks(edlm.corpora.Corpus(["ab"], ["ab"], ["ab"]), letters, 1.5)': (
        "length = 1.5 must be a whole number of at least 1"
    ),
    'edlm.checkpoints.load_network("nowhere")': (
        "nowhere: no checkpoint there (expected network.json, or checkpoints/last.json of a run)"
    ),
    "edlm.checkpoints.load_network(3)": "path must be a path, not of class int",
    "edlm.networks.Transformer(letters, **sizes)": (
        "vocab_size = <class 'edlm.data.vocabulary.Vocabulary'> must be a whole number"
    ),
    "edlm.networks.Transformer(4, 8, hidden_size=16.0)": "hidden_size = 16.0 must be a whole number",
    "edlm.networks.Transformer(4, 8, hidden_size=16, num_heads=3)": (
        "hidden_size = 16 must be a multiple of 2 * num_heads = 6"
    ),
    "edlm.schedules.log_linear(2)": "log_linear: eps = 2 must lie in [0, 1)",
    'edlm.schedules.log_linear("cosine")': "eps = 'cosine' must be a number",
    "edlm.schedules.polynomial(0.5)": "polynomial: power = 0.5 must be at least 1",
    "edlm.bounds.of_sampler(sampler, torch.zeros(2, 8), torch.tensor(0), torch.arange(2))": (
        "x_0 must be token ids, int64 (b, l), not float32 (2, 8)"
    ),
    "edlm.exact.of_sampler(sampler, torch.zeros(2, 8, dtype=torch.int64))": (
        "plain, T=4: its plan, T=4, is drawn: a text is written in many orders, and bounds are what is "
        "known of their sum"
    ),
}
