"""Speed changes no token: eager, compiled, and replayed as a CUDA graph."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import NamedTuple

import builders
import pytest
import torch
from builders import of_transitions, randomise, tiny_denoiser, tiny_energy
from covering import covering
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch.utils._python_dispatch import TorchDispatchMode

import edlm
from edlm.models import denoisers
from edlm.nn import networks
from edlm.process import schedules
from edlm.samplers import execution, plans
from edlm.samplers.pipelines import Pipeline
from edlm.samplers.sampler import Sampler

LENGTH, MASK = 6, 4


def in_order(schedule: schedules.Schedule, denoiser: denoisers.SubsDenoiser, _: object, num_particles: int) -> Sampler:
    """The denoiser's own energy in place of another."""
    return builders.in_order(schedule, denoiser, num_particles)


def two_heads(schedule: schedules.Schedule, _denoiser: object, _energy: object, num_particles: int) -> Sampler:
    """A joint network in place of both."""
    network = networks.JointNetwork(MASK + 1, 8, hidden_size=16, num_layers=1, num_heads=2)
    denoiser = denoisers.subs(randomise(network, 0).double(), MASK)
    return builders.two_heads(schedule, denoiser, num_particles)


KERNELS = {"drafts": builders.importance, "transitions": of_transitions, "in_order": in_order, "two_heads": two_heads}
both_kernels = pytest.mark.parametrize("build", [builders.importance, of_transitions], ids=["drafts", "transitions"])
every_kernel = pytest.mark.parametrize("build", KERNELS.values(), ids=KERNELS)


def eager(num_steps: int | None = 3, build: Callable[..., Sampler] = builders.importance) -> Pipeline:
    """Networks, an energy in a window, and rows that are in and out of it at the same pass without a grid."""
    kernel = build(schedules.log_linear(), tiny_denoiser(), tiny_energy(), 3)
    return builders.sampling(kernel, LENGTH, num_steps, window=(0.5, 1.0))


def plain(pipeline: Pipeline) -> Pipeline:
    assert pipeline.kernel.outside is not None
    return pipeline._replace(kernel=pipeline.kernel.outside)


def assert_same_tokens(fast: Pipeline, slow: Pipeline, b: int, **options: object) -> None:
    for p, q in ((fast, slow), (plain(fast), plain(slow))):
        out, expected = edlm.sample(p, b, **options), edlm.sample(q, b, **options)
        assert torch.equal(out["tokens"], expected["tokens"])
        for key in ("ess", "log_weight_std"):
            torch.testing.assert_close(out["info", key], expected["info", key], equal_nan=True)


PROMPTS = [None, torch.tensor([0, 1]), torch.tensor([MASK, 2, MASK, 1, 0, 3]), torch.tensor([0, 1, 2, 3, 0, MASK])]


# ---- Compiled


@pytest.mark.slow
def test_compiled_and_eager_give_the_same_tokens_and_nothing_is_compiled_twice(fresh_compiler: None):
    slow = eager()
    fast = edlm.accelerate(slow, "compile")
    assert_same_tokens(fast, slow, 4)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(1, 6):
            for prompt in PROMPTS:
                assert_same_tokens(fast, slow, 4, seed=seed, prompt=prompt)
        one_by_one = slow.sampler.replace(plan=plans.first_hitting())
        assert_same_tokens(fast._replace(sampler=one_by_one), slow._replace(sampler=one_by_one), 4)


@pytest.mark.slow
@both_kernels
def test_graphs_are_whole_and_serve_any_batch_size(
    fresh_compiler: None, monkeypatch: pytest.MonkeyPatch, build: Callable[..., Sampler]
):
    """Traced but not translated, which is what takes the time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    slow = eager(None, build)
    fast = edlm.accelerate(slow, "compile")
    for b in (4, 5, 1):  # a first size, any other size, and the size that is special to the compiler
        assert_same_tokens(fast, slow, b)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for b in (2, 3, 4, 16, 1):
            assert_same_tokens(fast, slow, b, seed=b)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the wrappers of an execution mode, and take out what they wrap around."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.mark.parametrize(("num_steps", "b", "name"), covering(product([1, 3, None], [1, 2, 5], KERNELS)))
def test_what_is_wrapped_around_a_step_changes_no_token(no_compiler: None, num_steps: int | None, b: int, name: str):
    slow = eager(num_steps, KERNELS[name])
    fast = edlm.accelerate(slow, "compile")
    for prompt in PROMPTS:
        assert_same_tokens(fast, slow, b, prompt=prompt)


# ---- Captured


class _FixedShapes:
    """Stands in for a CUDA graph: it is made for the layout of its first call, and writes over its own output."""

    made: list["_FixedShapes"]

    def __init__(self, module: torch.nn.Module, in_keys: list[str], out_keys: list[str]) -> None:
        self.module, self.in_keys, self.shapes, self.out = module, in_keys, None, None
        self.made.append(self)

    def __call__(self, tensordict: TensorDict) -> TensorDict:
        shapes = {key: (tensordict[key].shape, tensordict[key].stride()) for key in self.in_keys}
        self.shapes = self.shapes or shapes
        assert shapes == self.shapes
        out = self.module(tensordict)
        self.out = out.clone() if self.out is None else self.out.update_(out)
        return self.out


def captured(pipeline: Pipeline) -> Pipeline:
    """What `accelerate` makes of a pipeline on a CUDA device."""
    kernel = execution._over(pipeline.kernel, partial(execution._graphed, one_tile=1 << 20))
    return pipeline._replace(
        kernel=kernel,
        pad_rows=partial(execution._power_of_two, smallest=2),
        pad_positions=partial(execution._power_of_two, smallest=16),
        pad_new=partial(execution._power_of_two, smallest=execution._FEWEST_NEW),
    )


def test_a_graph_is_replayed_at_its_own_shapes_only(no_compiler: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(execution, "CudaGraphModule", _FixedShapes)
    _FixedShapes.made = []
    slow = eager(None)
    fast = captured(slow)
    states: list[torch.Tensor] = []
    for b in (4, 2, 5, 4, 1):
        edlm.sample(fast, b, callback=lambda state, _: states.append(state["x_t"]))
        for prompt in PROMPTS:  # which change the number of passes
            assert_same_tokens(fast, slow, b, seed=b, prompt=prompt)
    assert all((state == MASK).any() for state in states[: LENGTH - 1])  # states that were seen are not written over
    assert len(_FixedShapes.made) == len({(id(g.module), *g.shapes.items()) for g in _FixedShapes.made})
    assert len(_FixedShapes.made) <= 2 * 5  # two kernels; 16 positions or 32


def test_a_graph_is_replayed_at_its_own_number_of_new_tokens(no_compiler: None, monkeypatch: pytest.MonkeyPatch):
    """Of a step that reads them in order, with as many rows and positions: three are not the five of another pass."""
    monkeypatch.setattr(execution, "CudaGraphModule", _FixedShapes)
    _FixedShapes.made = []
    kernel = builders.in_order(schedules.log_linear(), tiny_denoiser(), 2)
    slow = builders.sampling(kernel, LENGTH, 2)
    fast = captured(slow)
    for seed in range(8):
        ours, expected = (edlm.sample(each, 2, seed=seed) for each in (fast, slow))
        assert torch.equal(ours["tokens"], expected["tokens"])
    assert len({graph.shapes["new"] for graph in _FixedShapes.made}) > 1


@given(st.integers(1, 2**20), st.sampled_from([2, 16]), st.integers(2, 5000))
def test_sizes_are_rounded_up_to_few_values(count: int, smallest: int, one_tile: int):
    size = execution._power_of_two(count, smallest)
    assert size >= count
    assert size <= max(smallest, 2 * count - 1)
    assert size.bit_count() == 1
    tiled = execution._whole_tiles(count, one_tile)
    if count <= one_tile:
        assert tiled == max(2, count)
    else:
        tiles, rest = divmod(tiled, one_tile)
        assert (rest, tiles.bit_count()) == (0, 1)
        assert count <= tiled < 2 * (count + one_tile)


# ---- Modes


def test_eager_is_the_pipeline_itself():
    pipeline = eager()
    assert edlm.accelerate(pipeline, "eager") is pipeline


@pytest.mark.parametrize("mode", ["fast", "", "Compile", None])
def test_an_unknown_mode_is_an_error(mode: str | None):
    with pytest.raises(ValueError, match=f"mode = {mode!r} must be one of eager, compile, cudagraph"):
        edlm.accelerate(eager(), mode)


def test_cuda_graphs_without_cuda_are_an_error():
    with pytest.raises(
        ValueError, match="mode = 'cudagraph' needs a pipeline on a CUDA device, and this one is on cpu"
    ):
        edlm.accelerate(eager(), "cudagraph")


def test_a_pipeline_keeps_its_parameters_and_device_when_accelerated(no_compiler: None):
    pipeline = eager()
    fast = edlm.accelerate(pipeline, "compile")
    assert fast.device == pipeline.device
    assert {id(p) for p in fast.kernel.step.parameters()} == {id(p) for p in pipeline.kernel.step.parameters()}
    assert fast.kernel.num_particles == pipeline.kernel.num_particles
    assert pipeline.pad_rows(1) == pipeline.pad_positions(1) == 1  # the one that was given is as it was


def noise_of(b: int, device: str) -> tuple[object, ...]:
    """What a step asks its noise for, of one row more or less."""
    tensors = torch.tensor(b), torch.arange(b), torch.tensor(2), torch.arange(b * LENGTH - 1)
    return *(each.to(device) for each in tensors), LENGTH


def test_noise_is_compiled_on_a_device_alone(monkeypatch: pytest.MonkeyPatch):
    def compiled(*_: object, **__: object) -> object:
        raise RuntimeError("compiled")

    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled)
    slow = eager().kernel.draw
    fast = execution._CompiledDraw(slow)
    for key, value in fast(*noise_of(3, "cpu")).items():
        assert torch.equal(value, slow(*noise_of(3, "cpu"))[key])
    with pytest.raises(RuntimeError, match="compiled"):
        fast(*noise_of(3, "meta"))


def test_compiled_noise_is_that_of_the_eager_draw_and_one_graph(
    fresh_compiler: None, as_on_a_device: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    slow = eager().kernel.draw
    fast = execution._CompiledDraw(slow)._run
    for b, again in ((4, False), (1, False), (5, False), (2, True), (3, True), (1, True)):
        drawn = noise_of(b, "cpu")
        with torch._dynamo.config.patch(error_on_recompile=again):
            for key, value in fast(*drawn).items():
                assert torch.equal(value, slow(*drawn)[key])


def test_without_a_compiler_it_says_so_and_stays_eager(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    pipeline = eager()
    with pytest.warns(UserWarning, match=r"needs a C\+\+ compiler and found no no-such-compiler: running eager"):
        assert edlm.accelerate(pipeline, "compile") is pipeline


# ---- The host

HOST_READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_consecutive", "_unique2")


class HostReads(TorchDispatchMode):
    """The operations at which the host waits for the device, or would on one."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        taken = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in HOST_READS or any(each is not None and each.dtype == torch.bool for each in taken):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_the_spy_sees_what_the_host_reads():
    tokens = torch.arange(4)
    with HostReads() as reads:
        int(tokens[2])
        tokens[tokens > 1]
    assert reads.names == ["_local_scalar_dense", "index"]


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("num_steps", [1, 3, None])
@every_kernel
def test_once_the_plan_is_known_nothing_in_the_loop_is_read_by_the_host(
    num_steps: int | None, build: Callable[..., Sampler]
):
    pipeline = eager(num_steps, build)
    reads = HostReads()

    def watched(kernel: Sampler) -> Sampler:
        def init(tokens: torch.Tensor) -> TensorDict:
            if not begun:
                begun.append(reads.__enter__())
            return kernel.init(tokens)

        return kernel._replace(init=init, outside=None if kernel.outside is None else watched(kernel.outside))

    for prompt in PROMPTS[:3]:
        begun: list[HostReads] = []
        try:
            edlm.sample(pipeline._replace(kernel=watched(pipeline.kernel)), 4, prompt=prompt)
        finally:
            for each in begun:
                each.__exit__(None, None, None)
        assert begun
        assert reads.names == []


# ---- On a device


class _OnDevice(NamedTuple):
    on_cpu: Pipeline
    slow: Pipeline
    fast: Pipeline


@pytest.fixture(params=[("compile", "drafts"), *(("cudagraph", name) for name in KERNELS)], ids="-".join)
def on_device(request: pytest.FixtureRequest, fresh_compiler: None) -> _OnDevice:
    mode, name = request.param
    pipeline = eager(build=KERNELS[name])
    pipeline.kernel.step.to("cuda")
    return _OnDevice(eager(build=KERNELS[name]), pipeline, edlm.accelerate(pipeline, mode))


def waits_for_nothing(kernel: Sampler) -> Sampler:
    """The kernel with an init that makes the device refuse to be waited for: the loop starts with it."""

    def init(tokens: torch.Tensor) -> TensorDict:
        torch.cuda.set_sync_debug_mode("error")
        return kernel.init(tokens)

    return kernel._replace(init=init)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")
def test_on_a_device_all_modes_give_the_tokens_of_the_cpu_without_waiting(on_device: _OnDevice):
    on_cpu, slow, fast = on_device
    for b in (4, 2):
        for seed in range(3):  # warmed up, captured, replayed
            assert_same_tokens(fast, slow, b, seed=seed)
            assert torch.equal(
                edlm.sample(fast, b, seed=seed)["tokens"].cpu(), edlm.sample(on_cpu, b, seed=seed)["tokens"]
            )
    expected = edlm.sample(slow, 4, seed=0)["tokens"]
    try:
        tokens = edlm.sample(fast._replace(kernel=waits_for_nothing(fast.kernel)), 4, seed=0)["tokens"]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(tokens, expected)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")
@pytest.mark.parametrize("mode", ["eager", "compile", "cudagraph"])
def test_on_a_device_what_is_written_in_order_is_that_of_the_cpu(mode: execution.Mode, fresh_compiler: None):
    """A step whose end the host has to see is compiled in parts."""
    on_cpu, moved = (
        builders.sampling(builders.speculative(schedules.log_linear(), tiny_denoiser()), LENGTH, 2) for _ in range(2)
    )
    moved.kernel.step.to("cuda")
    fast = edlm.accelerate(moved, mode)
    for b in (4, 2):
        for seed in range(3):
            assert torch.equal(
                edlm.sample(fast, b, seed=seed)["tokens"].cpu(), edlm.sample(on_cpu, b, seed=seed)["tokens"]
            )
