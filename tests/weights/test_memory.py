"""What a step of a large model needs: the plan bounds what lives at once, and is that of the documents."""

import weakref
from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from large_folders import MASK, dream_with_qwen, random_weights, write
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchtune.models import qwen2

import edlm
from edlm.models import denoisers
from edlm.nn import decoders
from edlm.process import categorical, schedules
from edlm.weights import large, memory


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive and were made inside; `peak` is the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.seen = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in before | self.seen:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


@pytest.mark.parametrize("vocab_size", [40, 300, 2000])
@pytest.mark.parametrize(("b", "k", "rows_at_once"), [(1, 8, None), (1, 8, 1), (3, 2, 2), (2, 1, None)])
def test_the_memory_plan_bounds_what_a_step_takes(b: int, k: int, rows_at_once: int | None, vocab_size: int) -> None:
    """At most three times what lives at once; what operations take inside themselves is not seen here."""
    kernel, dream, qwen = dream_with_qwen(k, rows_at_once, vocab_size)
    pipeline = builders.sampling(kernel, 32, num_steps=2, window=(0.0, 1.0))
    plan = memory.memory_plan(dream, qwen, b, k, 32)
    with Live() as live, torch.no_grad():
        edlm.sample(pipeline, b, seed=0)
    assert plan.weights == sum(t.numel() * 4 for n in (dream, qwen) for t in (*n.parameters(), *n.buffers()))
    assert live.peak <= plan.peak - plan.weights <= 3 * live.peak


@pytest.mark.parametrize("b", [1, 3])
def test_the_plan_without_an_energy_bounds_what_a_step_takes(b: int, tmp_path: Path) -> None:
    network = large.load_diffusion(write(tmp_path / "m", "llada", random_weights("llada")), 32)
    kernel = builders.ancestral(schedules.log_linear(), denoisers.subs(network, MASK))
    plan = memory.memory_plan(network, None, b, 8, 32)
    with Live() as live, torch.no_grad():
        edlm.sample(builders.sampling(kernel, 32, num_steps=1), b, seed=0)
    assert plan.weigh == 0
    assert live.peak <= plan.peak - plan.weights <= 3 * live.peak


def test_the_plans_tiles_are_those_of_the_sampler_and_the_energy() -> None:
    assert memory.memory_plan.__defaults__ == (categorical.LOGITS_AT_ONCE["cuda"],)


# Sizes of the published configs, which decide a plan.
_DREAM = {"hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28}
_DREAM |= {"num_key_value_heads": 4, "max_position_embeddings": 131_072, "vocab_size": 152_064}
_SMALL = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
_SMALL |= {"num_key_value_heads": 2, "max_position_embeddings": 32_768, "vocab_size": 151_936}
_LLADA = {"d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32, "mlp_hidden_size": 12_288}
_LLADA |= {"vocab_size": 126_464, "embedding_size": 126_464, "max_sequence_length": 4096}


@pytest.mark.parametrize(
    ("name", "family", "sizes", "energy", "rows", "length"),
    [
        ("Dream-7B with Qwen 2.5 0.5B", "dream", _DREAM, {**_SMALL, "tie_word_embeddings": True}, 1, 512),
        ("Dream-7B with Qwen 2.5 0.5B", "dream", _DREAM, {**_SMALL, "tie_word_embeddings": True}, 4, 1024),
        ("Dream-7B with Qwen 2.5 7B", "dream", _DREAM, _DREAM, 1, 1024),
        ("LLaDA-8B alone", "llada", _LLADA, None, 1, 1024),
    ],
)
def test_the_documented_plans_are_those_of_the_published_sizes(
    name: str, family: str, sizes: dict[str, int], energy: dict[str, int] | None, rows: int, length: int, tmp_path: Path
) -> None:
    write(tmp_path / "d", family, {}, shards=1, **sizes, torch_dtype="bfloat16")
    denoiser = decoders.outline(large.read_diffusion(tmp_path / "d", length))
    ar = None
    if energy is not None:
        write(tmp_path / "a", "qwen2", {}, shards=1, **energy, torch_dtype="bfloat16")
        ar = decoders.outline(large.read_autoregressive(tmp_path / "a", length, 4, denoiser.head.out_features))
    plan = memory.memory_plan(denoiser, ar, rows, 8, length)
    line = f"| {name} | {rows} | {length} | {plan.weights / 1e9:.2f} GB | {plan.peak / 1e9:.2f} GB |"
    assert line in (Path(__file__).parents[2] / "docs" / "howto" / "checkpoints.md").read_text("utf-8")


def test_the_plan_of_published_sizes_needs_no_memory_to_make() -> None:
    """Dream-7B with Qwen 2.5 0.5B in bf16: 15.2 GB and 1.0 GB of weights, by their published sizes."""
    with torch.device("meta"):
        dream = decoders.DecoderNetwork(
            qwen2.qwen2(152_064, 28, 28, 4, 3584, 18_944, max_seq_len=1024).to(torch.bfloat16), shifted=True
        )
        small = qwen2.qwen2(151_936, 24, 14, 2, 896, 4864, max_seq_len=1024, tie_word_embeddings=True)
        energy = decoders.autoregressive(small.to(torch.bfloat16), rows_at_once=4)
    assert sum(p.numel() for p in dream.parameters()) == 7_615_616_512
    assert sum(p.numel() for p in energy.parameters()) == 494_032_768
    plan = memory.memory_plan(dream, energy, batch_size=1, num_particles=8, length=1024)
    assert 16.2e9 < plan.weights < 16.3e9
    assert plan.peak < 24e9, plan
