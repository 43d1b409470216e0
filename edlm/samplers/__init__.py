"""Samplers as values, the steps that they take, and the loops that run them."""

from edlm.samplers.configs import config, from_config
from edlm.samplers.expectation import expected, expected_passes
from edlm.samplers.sampler import Proposal, Sampler, can_cache, describe, kernel_of, name
from edlm.samplers.watching import live

__all__ = [
    "Proposal",
    "Sampler",
    "can_cache",
    "config",
    "describe",
    "expected",
    "expected_passes",
    "from_config",
    "kernel_of",
    "live",
    "name",
]
