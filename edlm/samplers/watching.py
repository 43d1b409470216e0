"""Watching texts while they are drawn: a progress bar, and the texts as they form. Neither changes a token."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tensordict import TensorDict
from torch import Tensor

from edlm import contracts, progress
from edlm.data.vocabulary import Vocabulary

Callback = Callable[[TensorDict, TensorDict], None]


@contextmanager
def watched(tokens: Tensor, mask_id: int, shown: bool, callback: Callback | None) -> Iterator[Callback | None]:
    """Give a callback that moves a bar on, counted in filled masks of tokens (b, l), and calls another one.

    The host waits once a pass for the number of masks, where the bar is shown; else the callback is handed on.
    """
    if not shown:
        yield callback
        return
    total = int((tokens == mask_id).sum())
    with progress.bar(total=total, unit="token") as bar:

        def show(state: TensorDict, info: TensorDict) -> None:
            bar.update(total - int((state[contracts.X_T] == mask_id).sum()) - bar.n)
            if callback is not None:
                callback(state, info)

        yield show


def live(vocabulary: Vocabulary, rows: int = 4) -> Callback:
    """Build a callback that shows texts as they form, in a notebook and in a terminal in the place of those before.

    Args:
        vocabulary: what decodes them; a mask is shown as `_`.
        rows: how many are shown, from the first on.

    Returns:
        What `edlm.sample` takes as `callback`.

    Example:
        >>> import edlm
        >>> words = edlm.vocabulary.characters("ab")
        >>> network = edlm.networks.Transformer(3, max_length=8, hidden_size=16, num_layers=1, num_heads=2).eval()
        >>> sampler = edlm.samplers.Sampler(edlm.denoisers.subs(network, mask_id=2), edlm.plans.Grid(4))
        >>> pipeline = edlm.pipelines.pipeline(sampler, length=8)
        >>> out = edlm.sample(pipeline, callback=edlm.samplers.live(words))
    """

    def show(state: TensorDict, info: TensorDict) -> None:
        progress.redraw("\n\n".join(vocabulary.decode(state[contracts.X_T][:rows].cpu())))

    return show
