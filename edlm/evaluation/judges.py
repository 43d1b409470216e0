"""Judges of samples: how likely another model finds a text, in its own tokens.

A text is retokenised by the judge and cut into pieces of the judge's context, each of which is judged on its own, as
the generative perplexity of Lou et al. 2023, Sahoo et al. 2024 and Xu et al. 2025 is. Nothing is padded.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from edlm.data import tokenizer_files
from edlm.data.vocabulary import Vocabulary
from edlm.likelihood.estimates import Estimate
from edlm.models import autoregressive as causal
from edlm.nn import decoders
from edlm.nn.networks import Transformer
from edlm.process import categorical
from edlm.weights import checkpoints, large


class Judgement(NamedTuple):
    """Nats of a judge, float64 (n,), summed over the tokens of each text that count, and the number of those, (n,)."""

    nll: Tensor
    tokens: Tensor


Judge = Callable[[Sequence[str]], Judgement]
Likeness = Callable[[Sequence[str], Sequence[str]], Estimate]  # of samples and real text

TORCHTUNE = "torchtune:"  # in front of a folder whose model torchtune is to build
_CONTEXT = 1024  # tokens of a piece, as in the published evaluations, where a model could take more
_CLUSTERINGS = 5  # of MAUVE, whose spread is its error


def autoregressive(network: nn.Module, vocabulary: Vocabulary, bos_id: int | None, batch_size: int = 16) -> Judge:
    """Judge by a causal network of ours, its vocabulary and its longest context.

    Args:
        network: the network.
        vocabulary: retokenises the texts.
        bos_id: the id in front of every piece; all tokens count then. None: the first token of a piece does not count.
        batch_size: pieces that are judged at once.

    Returns:
        The judge. It raises ValueError for a text that the vocabulary cannot spell.

    Raises:
        ValueError: for a network that is not causal, or ids outside of its vocabulary.

    Example:
        >>> import edlm
        >>> network = edlm.networks.Transformer(28, 16, hidden_size=32, num_layers=1, conditioning_size=0, causal=True)
        >>> judge = autoregressive(network.eval(), edlm.vocabulary.characters(), bos_id=None)
        >>> judge(["the cat"]).tokens.tolist()
        [6]
    """
    causal.check_ar(network, vocabulary.mask_id, bos_id)
    device = next(network.parameters()).device

    def score(tokens: Tensor) -> Tensor:
        return causal.ar_log_prob(network, tokens.to(device), vocabulary.mask_id, bos_id).cpu()

    context, behind = int(network.max_length), 0 if bos_id is not None else 1  # type: ignore[arg-type]
    return lambda texts: _judge(vocabulary.encode_documents(texts), context, behind, batch_size, score)


def causal_lm(name: str, device: torch.device, batch_size: int = 4) -> Judge:
    """Judge by a causal language model in Hugging Face's format.

    The first token of a piece is given and does not count, as in the published evaluations. They take GPT-2 Large and
    1024 tokens; a model that takes more is given 1024 too. Weights are read from safetensors alone and computed with in
    float32. No code of the model's folder is run.

    Args:
        name: a folder, or a name that `transformers` finds.
        device: where the model runs.
        batch_size: pieces that are judged at once.

    Returns:
        The judge. It raises ValueError for a text that the tokenizer cannot spell.

    Raises:
        ValueError: if `transformers` is missing or cannot load it, or weights or a tokenizer do not fit the model.
    """
    tokenizer, model = _from_hugging_face("judge", name, "AutoModelForCausalLM")
    model = model.eval().to(device, torch.float32)

    def score(tokens: Tensor) -> Tensor:
        tokens = tokens.to(device)
        log_p = tokens.new_zeros(tokens.shape, dtype=torch.float64)
        logits = model(input_ids=tokens).logits[:, :-1]
        found = categorical.token_log_prob(logits.flatten(0, 1), tokens[:, 1:].flatten().unsqueeze(-1))
        log_p[:, 1:] = found.view(len(tokens), -1)
        return log_p.cpu()

    def encode(text: str) -> Tensor:
        mistake = ValueError(f"judge = {name!r} cannot spell the text {text[:40]!r}")
        try:  # text that spells a special token is text
            ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        except Exception as error:  # of `tokenizers`, which raises nothing more specific
            raise mistake from error
        unknown = tokenizer.unk_token_id in ids and tokenizer.unk_token not in text
        if unknown or (text and not ids):
            raise mistake
        return torch.tensor(ids, dtype=torch.int64)

    context = _context(model.config)
    return lambda texts: _judge([encode(text) for text in texts], context, 1, batch_size, score)


def _from_hugging_face(key: str, name: str, loader: str) -> tuple[Any, Any]:
    """Load the tokenizer and the network of a model, by a loader of `transformers`, all its weights from its files."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"{key} = {name!r} is no folder of `edlm run`, and a model in Hugging Face's format needs the extra "
            f"package: pip install 'edlm-torch[{key}]'"
        ) from error
    options = {"trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model, found = getattr(transformers, loader).from_pretrained(name, **options)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ValueError(f"{key} = {name!r} cannot be loaded: {error}") from error
    # `transformers` makes these up at random, with a warning. Nothing here reads a pooler.
    missing = sorted(weight for weight in found["missing_keys"] if not weight.startswith("pooler."))
    if missing:
        raise ValueError(f"{key} = {name!r} lacks {len(missing)} of its model's weights: {', '.join(missing[:3])}")
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(f"{key} = {name!r} has a tokenizer of {len(tokenizer)} tokens and a network of {rows}")
    return tokenizer, model


def _context(config: Any) -> int:
    """Choose the tokens of a piece for a model with this config."""
    return min(_CONTEXT, int(getattr(config, "max_position_embeddings", _CONTEXT)))


def torchtune_decoder(folder: str | Path, device: torch.device, batch_size: int = 4) -> Judge:
    """Judge by a Qwen 2 or Llama folder that torchtune builds, in the tokens of its `tokenizer.json`.

    Pieces and counted tokens are those of `causal_lm`, without `transformers`.

    Args:
        folder: `config.json`, the weights and `tokenizer.json`.
        device: where the model runs.
        batch_size: pieces that are judged at once.

    Returns:
        The judge.

    Raises:
        ValueError: naming the file or the setting that is missing or unlike these models.
    """
    file = Path(folder) / "tokenizer.json"
    network = decoders.load(large.read_autoregressive(folder, _CONTEXT)).to(device)
    tokenizer = tokenizer_files.read(file)

    def score(tokens: Tensor) -> Tensor:
        tokens = tokens.to(device)
        found = network.head.log_prob(network(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        return found.view(len(tokens), -1).cpu()

    def encode(text: str) -> Tensor:
        return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids, dtype=torch.int64)

    return lambda texts: _judge([encode(text) for text in texts], network.max_length, 1, batch_size, score)


def mauve(name: str, device: torch.device) -> Likeness:
    """Build MAUVE, how alike samples and real text are, 0 to 1 (Pillutla et al. 2021, arXiv 2102.01454).

    The figure varies with the clustering of features. So it is the mean over a few clusterings, and its error their
    standard deviation with the texts held fixed. Few texts make few clusters; the authors advise thousands.

    Args:
        name: the language model in Hugging Face's format whose last state is a text's features. The paper takes
            `gpt2-large`. It reads 1024 tokens at most.
        device: where the model runs.

    Returns:
        The measure of samples and real text. It raises ValueError for fewer than two texts with any tokens.

    Raises:
        ValueError: if `mauve-text` or `transformers` is missing, or the model cannot be loaded.
    """
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise ValueError(f"mauve = {name!r} needs the extra package: pip install 'edlm-torch[mauve]'") from error
    tokenizer, model = _from_hugging_face("mauve", name, "AutoModel")
    model = model.eval().to(device, torch.float32)
    options = {"truncation": True, "max_length": _context(model.config), "return_tensors": "pt"}
    options["split_special_tokens"] = True  # text that spells a special token is text

    @torch.no_grad()
    def features(texts: Sequence[str]) -> Any:
        ids = (tokenizer(text, **options)["input_ids"].to(device) for text in texts if text)
        return torch.cat([model(input_ids=row).last_hidden_state[:, -1].cpu() for row in ids]).numpy()

    def likeness(samples: Sequence[str], real: Sequence[str]) -> Estimate:
        if min(sum(map(bool, texts)) for texts in (samples, real)) < 2:
            raise ValueError(f"mauve = {name!r} needs at least 2 texts of either kind")
        both = {"p_features": features(real), "q_features": features(samples)}
        found = [compute_mauve(**both, seed=seed).mauve for seed in range(_CLUSTERINGS)]
        values = torch.tensor(found, dtype=torch.float64)
        return Estimate(float(values.mean()), float(values.std()), len(samples))

    return likeness


def describe(name: str) -> dict[str, Any]:
    """Describe a judge in Hugging Face's format: its context, and the versions that a figure depends on.

    Args:
        name: a folder, or a name that `transformers` finds.

    Returns:
        Values for the record. `revision` is the commit of a name's files, None for those of a folder.

    Raises:
        ValueError: as `causal_lm` does for its config.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    return {
        "context": _context(config),
        "precision": "float32",
        "revision": _commit(name),
        "transformers": transformers.__version__,
    }


def _commit(name: str) -> str | None:
    """Find the commit of a name's files, by the folder of the hub's cache that they lie in; None for a folder's."""
    from transformers.utils import cached_file

    return None if Path(name).is_dir() else Path(cached_file(name, "config.json")).parent.name


def load(path: str, device: torch.device) -> tuple[Judge, dict[str, Any]]:
    """Load a judge and its description: an AR model's run or network folder of ours, else a Hugging Face model.

    Args:
        path: the folder or name; with `torchtune:` in front of a folder, torchtune builds its model.
        device: where the model runs.

    Returns:
        The judge, and values that describe it.

    Raises:
        ValueError: for a network of ours that is not causal, and as `causal_lm` and `torchtune_decoder` do.
    """
    if path.startswith(TORCHTUNE):
        name = path.removeprefix(TORCHTUNE)
        blueprint = large.read_autoregressive(name, _CONTEXT)
        precision = str(blueprint.dtype).removeprefix("torch.")
        what = {"kind": "torchtune", "context": decoders.outline(blueprint).max_length, "precision": precision}
        return torchtune_decoder(name, device), {"path": name, **what}
    folder = Path(path)
    if not ((folder / "network.json").is_file() or (folder / "checkpoints" / "last.json").is_file()):
        return causal_lm(path, device), {"path": path, "kind": "causal_lm", **describe(path)}
    found = checkpoints.find_network(folder)
    network = checkpoints.load_as(Transformer, found).to(device)
    if not network.arguments["causal"]:
        raise ValueError(f"judge = {path!r} holds a network that is not causal")
    vocabulary = checkpoints.load_vocabulary_of(found)
    description = checkpoints.read_description(found)
    judge = autoregressive(network, vocabulary, description.get("bos_id"))
    return judge, {"path": path, "kind": "autoregressive", "vocabulary": vocabulary.fingerprint}


@torch.no_grad()
def _judge(
    encoded: Sequence[Tensor], context: int, behind: int, batch_size: int, score: Callable[[Tensor], Tensor]
) -> Judgement:
    """Sum log-probabilities over pieces of at most `context` tokens, of which the first `behind` do not count."""
    pieces = [(text, piece) for text, ids in enumerate(encoded) for piece in ids.split(context) if len(piece) > behind]
    if not pieces:
        raise ValueError("there is no text to judge")
    nll = torch.zeros(len(encoded), dtype=torch.float64)
    tokens = torch.zeros(len(encoded), dtype=torch.int64)
    for length in sorted({len(piece) for _, piece in pieces}):
        alike = [(text, piece) for text, piece in pieces if len(piece) == length]
        for first in range(0, len(alike), batch_size):
            owners, rows = zip(*alike[first : first + batch_size], strict=True)
            owner = torch.tensor(owners)
            nll.index_add_(0, owner, -score(torch.stack(rows)).double().sum(-1))
            tokens.index_add_(0, owner, torch.full_like(owner, length - behind))
    if bool(nll.isnan().any()):
        raise ValueError(f"the judge's logits are not finite for text {int(nll.isnan().nonzero()[0])}")
    return Judgement(nll, tokens)
