"""A causal network over the ids of another vocabulary: ids that both know keep their law, all others are impossible."""

from typing import Any

from torch import Tensor, nn

from edlm.nn.pretrained import PretrainedNetwork, VocabularyHead


class KnownEmbedding(nn.Embedding):
    """An embedding that reads ids from `known` on as rows of zeros, but for the id in front of a text."""

    def __init__(self, embedding: nn.Embedding, known: int, bos_id: int | None) -> None:
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, device="meta")
        self.weight, self.of, self.known, self.bos_id = embedding.weight, embedding, known, bos_id

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed tokens (b, l): (b, l, h)."""
        unknown = tokens >= self.known
        if self.bos_id is not None:
            unknown = unknown & (tokens != self.bos_id)
        rows: Tensor = self.of(tokens.masked_fill(unknown, 0))
        return rows.masked_fill(unknown.unsqueeze(-1), 0.0)


def fits(network: Any, width: int, known: int, mask_id: int) -> bool:
    """Check whether a network has these columns, and gives no id from `known` on a chance but the mask, which has none.

    Args:
        network: has an `embedding` and a `head`.
        width: ids of the other vocabulary.
        known: how many of the first ids mean the same to both.
        mask_id: the mask of the other vocabulary.

    Returns:
        Whether `over` would leave it as it is.

    Example:
        >>> import edlm
        >>> network = edlm.networks.Transformer(5, 8, hidden_size=16, num_layers=1, num_heads=2, causal=True)
        >>> fits(network, 5, known=4, mask_id=4), fits(network, 5, known=3, mask_id=4)
        (True, False)
    """
    others = set(range(known, min(width, int(network.embedding.num_embeddings)))) - {mask_id}
    return int(network.head.out_features) == width and not others


def over(network: Any, width: int, known: int, mask_id: int, bos_id: int | None) -> Any:
    """Make a causal network that nobody else holds yet one over the ids of another vocabulary.

    Ids below `known` have the network's law, given that one of them is drawn. All others have no chance, and are never
    read as another token.

    Args:
        network: has an `embedding` and a `head`; it is changed where it does not fit.
        width: ids of the other vocabulary.
        known: how many of the first ids mean the same to both.
        mask_id: the mask of the other vocabulary.
        bos_id: what the network reads in front of a text, an id of its own; None: nothing.

    Returns:
        The same network.

    Example:
        >>> import edlm
        >>> network = edlm.networks.Transformer(5, 8, hidden_size=16, num_layers=1, num_heads=2, causal=True)
        >>> over(network, 7, known=4, mask_id=6, bos_id=4).head(torch.zeros(1, 16)).isfinite().tolist()
        [[True, True, True, True, False, False, False]]
    """
    if fits(network, width, known, mask_id):
        return network
    rows = network.embedding.num_embeddings
    softcap, beyond = getattr(network.head, "softcap", None), range(known, min(rows, width))
    network.head = VocabularyHead(network.head, softcap, never=beyond, width=width)
    embedding = KnownEmbedding(network.embedding, min(known, rows), bos_id)
    if isinstance(network, PretrainedNetwork):
        network.body.set_input_embeddings(embedding)  # type: ignore[operator]
    else:
        network.embedding = embedding
    return network
