"""Muon: hidden matrices step along their orthogonalised momentum, all other weights by AdamW (Jordan et al. 2024)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edlm.nn import networks
from edlm.process import arguments

HIDDEN = "hidden"  # of a group: whether its weights are hidden matrices
PATH = "edlm.training.muon.Muon"  # in configs
_CONDITIONING = "modulation"  # reads a noise level, often a constant one: a bias in the shape of a matrix
_COEFFICIENTS, _ITERATIONS, _SMALL = (3.4445, -4.7750, 2.0315), 5, 1e-7


class Muon(torch.optim.Optimizer):
    """Step hidden matrices by Muon and the embedding, the head, norms and biases by AdamW.

    The momentum `m <- momentum m + g` of a matrix (p, q) gives the step `-lr 0.2 sqrt(max(p, q)) O(g + momentum m)`,
    where O replaces the singular values by about 1. So steps are as large as AdamW's, and one rate serves both
    (Liu et al. 2025, arXiv 2502.16982, section 2.2). O is five Newton-Schulz iterations, in float32 on a CPU, which is
    slow at bfloat16.

    Args:
        params: weights, or groups of them. The key `hidden` of a group says whether Muon steps it. Without this key,
            Muon steps the weights with two axes.
        lr: rate of the hidden matrices.
        adamw_lr: rate of the others.
        momentum: of the hidden matrices, in [0, 1).
        betas: of AdamW.
        weight_decay: of both, in proportion to the rate.

    Raises:
        ValueError: naming the argument, for a rate, a momentum or a decay outside its range.

    Example:
        >>> from edlm.training.muon import Muon
        >>> weight = torch.nn.Parameter(torch.eye(2))
        >>> optimizer = Muon([weight], lr=0.1, weight_decay=0.0)
        >>> (weight * torch.tensor([[3.0, 0.0], [0.0, 0.01]])).sum().backward()
        >>> optimizer.step()
        >>> (weight.diag() < 1.0).tolist()
        [True, True]
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-3,
        adamw_lr: float = 2e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
    ) -> None:
        _check(lr=lr, adamw_lr=adamw_lr, weight_decay=weight_decay)
        arguments.require_numbers(momentum=momentum)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum = {momentum} must lie in [0, 1)")
        _check_betas(betas)
        if isinstance(params, Tensor) or not isinstance(params, Iterable):
            raise ValueError(f"params must be weights or groups of them, not one {type(params).__name__}")
        groups = [each for given in params for each in _groups(given)]
        shared = {"betas": tuple(betas), "weight_decay": weight_decay, "momentum": momentum, "eps": 1e-8}
        rated = [{**shared, "lr": lr if each[HIDDEN] else adamw_lr, **each} for each in groups]
        super().__init__(rated, {"lr": lr, HIDDEN: True, **shared})
        others = [group for group in self.param_groups if not group[HIDDEN]]
        self._others = torch.optim.AdamW(others, foreach=True) if others else None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step from the gradients that are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"] if group[HIDDEN] else ():
                if weight.grad is not None:
                    self._orthogonal(weight, weight.grad, group)
        if self._others is not None:
            self._share()
            self._others.step()
        return loss

    def _orthogonal(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        moved = state["momentum"].mul_(group["momentum"]).add_(gradient)
        step = orthogonalised(gradient + group["momentum"] * moved)
        weight.mul_(1.0 - group["lr"] * group["weight_decay"])
        weight.add_(step.to(weight), alpha=-0.2 * group["lr"] * max(weight.shape) ** 0.5)

    def _share(self) -> None:
        """Let AdamW step the present groups with the present state: both are replaced when a state is loaded."""
        assert self._others is not None
        groups = [group for group in self.param_groups if not group[HIDDEN]]
        for own, group in zip(self._others.param_groups, groups, strict=True):
            own.update(group)
        self._others.state = self.state


def orthogonalised(matrix: Tensor) -> Tensor:
    """Replace the singular values of a matrix (p, q) by about 1, in [0.7, 1.2], by Newton-Schulz iterations.

    Args:
        matrix: any but zero.

    Returns:
        The matrix, in float32 on a CPU and in bfloat16 elsewhere.

    Example:
        >>> from edlm.training.muon import orthogonalised
        >>> bool((orthogonalised(torch.diag(torch.tensor([5.0, 0.5]))).diag() > 0.6).all())
        True
    """
    x = matrix.to(torch.float32 if matrix.device.type == "cpu" else torch.bfloat16)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = x / (x.norm() + _SMALL)
    if x.dtype == torch.float32 and x.shape[1] >= 2 * x.shape[0]:  # in bfloat16 the square loses too much
        x = _by_square(x @ x.T) @ x
    else:
        a, b, c = _COEFFICIENTS
        for _ in range(_ITERATIONS):
            square = x @ x.T
            x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


def _by_square(square: Tensor) -> Tensor:
    """Give the matrix (p, p) by which all iterations together multiply x (p, q), from x x^T: less work if 2p <= q."""
    a, b, c = _COEFFICIENTS
    together = torch.eye(len(square), dtype=square.dtype, device=square.device)
    for _ in range(_ITERATIONS):
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        factor.diagonal().add_(a)
        together, square = factor @ together, factor @ (factor @ square)
    return together


def hidden_matrices(network: nn.Module) -> set[str]:
    """Name the matrices of a network's blocks that read a text: what Muon steps.

    Args:
        network: one with blocks.

    Returns:
        Names of parameters.

    Example:
        >>> import edlm
        >>> from edlm.training import muon
        >>> network = edlm.networks.Transformer(28, 16, hidden_size=32, num_layers=1, conditioning_size=0)
        >>> sorted(muon.hidden_matrices(network))[0]
        'trunk.blocks.0.attention.out.weight'
    """
    inside = {id(weight) for block in networks.blocks(network) for weight in block.parameters() if weight.ndim == 2}
    named = network.named_parameters()
    return {name for name, weight in named if id(weight) in inside and _CONDITIONING not in name}


def marks(values: Mapping[str, Any], network: nn.Module) -> Callable[[str], tuple[tuple[str, bool], ...]]:
    """Give what the group of a weight, by its name, has to say to the optimiser of a config's section."""
    if values["_component_"] != PATH:
        return lambda name: ()
    hidden = hidden_matrices(network)
    return lambda name: ((HIDDEN, name in hidden),)


def _groups(given: Any) -> list[dict[str, Any]]:
    """Give the groups of one entry of `params`, each with its mark."""
    group = {**given, "params": list(given["params"])} if isinstance(given, dict) else {"params": [given]}
    for weight in group["params"]:
        if not isinstance(weight, Tensor):
            raise ValueError(f"params must be weights or groups of them, and one is {weight!r}")
        if group.get(HIDDEN) and weight.ndim != 2:
            raise ValueError(f"params: a hidden weight must be a matrix, and one has the shape {tuple(weight.shape)}")
    if HIDDEN in group:
        return [group]
    kinds = ((kind, [each for each in group["params"] if (each.ndim == 2) == kind]) for kind in (True, False))
    return [{**group, "params": own, HIDDEN: kind} for kind, own in kinds if own]


def _check_betas(betas: Any) -> None:
    pair = isinstance(betas, Sequence) and len(betas) == 2
    if not (pair and all(isinstance(beta, int | float) and 0.0 <= beta < 1.0 for beta in betas)):
        raise ValueError(f"betas = {betas!r} must be two numbers in [0, 1)")


def _check(**values: float) -> None:
    arguments.require_numbers(**values)
    for name, value in values.items():
        if not 0.0 <= value < float("inf"):
            raise ValueError(f"{name} = {value} must be at least 0, and finite")
