"""Networks that start from others: an energy or a joint network from a denoiser, an embedding in common."""

from torch import nn

from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer


def start_energy_from(energy: EnergyNetwork, denoiser: Transformer) -> None:
    """Copy the denoiser's embedding and trunk into the energy.

    Args:
        energy: the network that is written to.
        denoiser: the network that is read.

    Raises:
        ValueError: if their shapes or their attention differ.

    Example:
        >>> import edlm
        >>> from edlm.nn import starts
        >>> sizes = {"vocab_size": 28, "max_length": 16, "hidden_size": 32, "num_layers": 1}
        >>> energy, denoiser = edlm.networks.EnergyNetwork(**sizes), edlm.networks.Transformer(**sizes)
        >>> starts.start_energy_from(energy, denoiser)
        >>> torch.equal(energy.embedding.weight, denoiser.embedding.weight)
        True
    """
    _require_same_attention("energy", energy, denoiser)
    for part in ("embedding", "trunk"):
        try:
            getattr(energy, part).load_state_dict(getattr(denoiser, part).state_dict())
        except RuntimeError as error:
            raise ValueError(f"the energy's {part} cannot start from the denoiser's: {error}") from error


def start_joint_from(joint: JointNetwork, denoiser: Transformer) -> None:
    """Copy the denoiser into the joint network, which then has exactly its law.

    Args:
        joint: the network that is written to.
        denoiser: the network that is read.

    Raises:
        ValueError: if their shapes or their attention differ.

    Example:
        >>> import edlm
        >>> from edlm.nn import starts
        >>> sizes = {"vocab_size": 28, "max_length": 16, "hidden_size": 32, "num_layers": 1}
        >>> joint, denoiser = edlm.networks.JointNetwork(**sizes), edlm.networks.Transformer(**sizes)
        >>> starts.start_joint_from(joint, denoiser)
    """
    _require_same_attention("joint network", joint, denoiser)
    try:
        joint.denoiser.load_state_dict(denoiser.state_dict())
    except RuntimeError as error:
        raise ValueError(f"the joint network cannot start from the denoiser: {error}") from error


def _require_same_attention(name: str, network: EnergyNetwork | JointNetwork, denoiser: Transformer) -> None:
    """Raise ValueError for networks of which one normalises queries and keys: no weight shows it."""
    own, theirs = (each.arguments.get("qk_norm", False) for each in (network, denoiser))
    if own != theirs:
        raise ValueError(f"the {name} has qk_norm = {own}, and the denoiser that it starts from {theirs}")


def share_embedding(energy: EnergyNetwork, denoiser: Transformer) -> None:
    """Have the energy read tokens by the denoiser's own embedding, in the same memory, frozen in both.

    Each network has a parameter of its own. If the energy's is sharded or halved later, the denoiser's stays as it is.

    Args:
        energy: the network whose embedding is replaced.
        denoiser: the network whose embedding is shared.

    Raises:
        ValueError: if their shapes differ.

    Example:
        >>> import edlm
        >>> from edlm.nn import starts
        >>> sizes = {"vocab_size": 28, "max_length": 16, "hidden_size": 32, "num_layers": 1}
        >>> energy, denoiser = edlm.networks.EnergyNetwork(**sizes), edlm.networks.Transformer(**sizes)
        >>> starts.share_embedding(energy, denoiser)
        >>> energy.embedding.weight.data_ptr() == denoiser.embedding.weight.data_ptr()
        True
    """
    ours, theirs = tuple(energy.embedding.weight.shape), tuple(denoiser.embedding.weight.shape)
    if ours != theirs:
        raise ValueError(f"the energy's embedding {ours} must have the denoiser's shape {theirs} to be shared")
    denoiser.embedding.requires_grad_(False)
    energy.embedding.weight = nn.Parameter(denoiser.embedding.weight.detach(), requires_grad=False)
