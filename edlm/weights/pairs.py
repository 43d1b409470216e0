"""An AR model beside a denoiser, either of them ours or of the hub, over the ids of the denoiser.

Both must give text the same ids. The denoiser may know more: its mask, and what else stands behind the ids of the
tokenizer. Such an id has no chance under the AR model, and is never read as another token. The AR model may know more
too, as the unused rows of a padded embedding. Its law is then the one given that the denoiser can write the token,
place by place. So texts that are drawn, residual energies and exact likelihoods are of one law, and the carry-over form
has Z = 1.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from edlm.data import tokenizer_files, tokenizer_kinds
from edlm.data.vocabulary import Vocabulary
from edlm.nn import decoders, known_ids
from edlm.nn.networks import Transformer
from edlm.weights import checkpoints, large, loading, sources
from edlm.weights.loading import Found, is_large
from edlm.weights.sources import PLAIN, How, Source


class Beside(NamedTuple):
    """An AR model over the ids of a denoiser. bos_id: what it reads in front of a text; None: the first token is given.

    opened: whether texts of the denoiser begin with this bos themselves, as those of `wrapped` blocks do. It is then
    read in its place alone.
    """

    network: Any
    bos_id: int | None
    opened: bool

    @property
    def front(self) -> int | None:
        """The id in front of a text of the denoiser, None if its first token is given."""
        return None if self.opened else self.bos_id


def autoregressive(
    source: Source,
    denoiser: Found,
    device: torch.device,
    how: How = PLAIN,
    wrapped: bool | None = None,
    window: int | None = None,
) -> Beside:
    """Load the AR model that a config names beside a denoiser.

    Args:
        source: the folder of one of ours or of the hub, or a section with a builder.
        denoiser: the denoiser, a baseline or a joint network, whose ids the AR model is given.
        device: where the model runs.
        how: of a large one.
        wrapped: whether texts stand between a bos and an eos; None: where the denoiser was trained on such.
        window: tokens of a text, which the model has to read; None: any number.

    Returns:
        The model.

    Raises:
        ValueError: naming both for other tokens, and for a bos or an end of the text that only one of them knows; for
            too short a model.
    """
    if not is_large(source):
        assert isinstance(source, str)
        found = _ours(source, denoiser, device)
        if window is not None:
            _require_long(source, found.network.max_length, window)
        return found
    ids = denoiser.vocabulary
    _require_same_tokens(source, denoiser)
    blueprint = sources.read(source, how, ids.size)
    if window is not None:
        _require_long(source, decoders.outline(blueprint).max_length, window)
    network = decoders.load(blueprint, how.dtype).to(device)
    bos_id, opened = _bos(source, denoiser, network, wrapped)
    known = _known(source, denoiser, network)
    return Beside(known_ids.over(network, ids.size, known, ids.mask_id, bos_id), bos_id, opened)


def front(source: Source, denoiser: Found, network: Any) -> int | None:
    """Find what a large AR model reads in front of the texts that a denoiser was trained on, None if nothing.

    Raises ValueError for texts between a bos and an eos that the model does not know.
    """
    bos_id, opened = _bos(source, denoiser, network, None)
    return None if opened else bos_id


def require_trainable(source: Source, denoiser: Found, network: Any) -> None:
    """Raise ValueError for an AR model that cannot be trained over a denoiser's ids: of other tokens, or other ids too.

    network: as it was loaded, a large one for so many ids as the denoiser has.
    """
    if is_large(source) or is_large(denoiser.path):
        _require_same_tokens(source, denoiser)
    else:
        checkpoints.require_same_vocabulary(denoiser.path, str(source))
        return
    ids, known = denoiser.vocabulary, _known(source, denoiser, network)
    if not known_ids.fits(network, ids.size, known, ids.mask_id):
        raise ValueError(
            f"ar = {sources.said(source)} is trained over its own {network.head.out_features} ids, and denoiser = "
            f"{denoiser.path!r} has {ids.size}, of which {known} are the same tokens to both"
        )


def _ours(path: str, denoiser: Found, device: torch.device) -> Beside:
    found = loading.autoregressive(path, device)
    network, bos_id, ids = found.network, found.description.get("bos_id"), denoiser.vocabulary
    if not is_large(denoiser.path):
        checkpoints.require_same_vocabulary(denoiser.path, path)
        return Beside(network, bos_id, opened=False)
    _require_same_tokens(path, denoiser)
    if not isinstance(network, Transformer):
        kind = type(network).__name__
        raise ValueError(f"ar = {path!r} holds a {kind}, and beside {denoiser.path!r} it must be a Transformer of ours")
    if network.pad_id is not None and network.pad_id in (ids.eos_id, ids.pad_id):
        raise ValueError(
            f"ar = {path!r} has learned no law of id {network.pad_id}, by which denoiser = {denoiser.path!r} ends a "
            "text: train it with padding=learned"
        )
    network = known_ids.over(network, ids.size, _known(path, denoiser, network), ids.mask_id, bos_id)
    return Beside(network, bos_id, opened=False)


def _bos(source: Source, denoiser: Found, network: Any, wrapped: bool | None) -> tuple[int | None, bool]:
    """Find the bos of a large AR model, the denoiser's if it names none, and whether texts begin with it themselves."""
    ids, known = denoiser.vocabulary, _known(source, denoiser, network)
    bos_id = sources.special_ids(source)["bos_id"]
    if bos_id is None and _below(ids.bos_id, known):
        bos_id = ids.bos_id
    between = bool(denoiser.description.get("wrapped")) if wrapped is None else wrapped
    between = between and not is_large(denoiser.path) and None not in (ids.bos_id, ids.eos_id)
    if between and not (_below(ids.bos_id, known) and _below(ids.eos_id, known)):
        raise ValueError(
            f"ar = {sources.said(source)} does not know bos = {ids.bos_id} and eos = {ids.eos_id}, between which texts "
            f"of denoiser = {denoiser.path!r} stand: its vocabulary must name tokens of the tokenizer"
        )
    return bos_id, between and bos_id == ids.bos_id


def _require_long(source: Source, longest: int, window: int) -> None:
    if window > longest:
        raise ValueError(f"ar = {sources.said(source)} reads {longest} tokens, and a text has {window}: give length=")


def _require_same_tokens(source: Source, denoiser: Found) -> None:
    """Raise ValueError, naming both, for tokenizers that give a text other ids, or one that is not there."""
    large_ar, path, said = is_large(source), denoiser.path, sources.said(source)
    if large_ar and is_large(path):  # a folder without a tokenizer has that of the other, as Dream's
        large.require_same_tokens(denoiser.vocabulary, sources.folder_of(source))
        return
    if large_ar:
        file = sources.folder_of(source) / "tokenizer.json"
        if not file.is_file():
            raise ValueError(f"ar = {said}: {file} is missing, so nothing says that its ids are those of {path!r}")
        own = tokenizer_files.read(file)
    else:
        own = checkpoints.load_vocabulary_of(str(source)).tokenizer
    ids = denoiser.vocabulary
    if not tokenizer_files.alike(own.to_str(), ids.tokenizer.to_str()):
        kind = ", whose ids are single characters" if ids.unit == "character" else ""
        raise ValueError(
            f"ar = {said} has another tokenizer than denoiser = {path!r}{kind}: a token means another text to each"
        )


def _known(source: Source, denoiser: Found, network: Any) -> int:
    """Count the first ids that mean the same to both: of two large models, all that the AR model has."""
    ids, rows = denoiser.vocabulary, int(network.embedding.num_embeddings)
    if is_large(source) and is_large(denoiser.path):
        return rows
    if is_large(source):
        return min(rows, _shared(ids, sources.special_ids(source)))
    others = {"bos_id": ids.bos_id, "eos_id": ids.eos_id}
    return min(rows, _shared(checkpoints.load_vocabulary_of(str(source)), others))


def _shared(ours: Vocabulary, others: Mapping[str, int | None]) -> int:
    """Count the ids of a tokenizer, and behind them a bos or eos that both name."""
    alike = (id_ + 1 for name, id_ in others.items() if id_ is not None and id_ == getattr(ours, name))
    return max([tokenizer_kinds.own_size(ours.tokenizer), *alike])


def _below(id_: int | None, known: int) -> bool:
    return id_ is not None and id_ < known
