"""Samplers: how one step turns `x_t` into `x_s`, and the loops that run steps."""

from edlm.samplers.sampler import (
    Proposal,
    Sampler,
    config,
    describe,
    expected,
    expected_passes,
    from_config,
    kernel_of,
    name,
)

__all__ = [
    "Proposal",
    "Sampler",
    "config",
    "describe",
    "expected",
    "expected_passes",
    "from_config",
    "kernel_of",
    "name",
]
