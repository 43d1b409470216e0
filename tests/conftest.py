"""One thread, the same examples in every run, and what several files run or read."""

# ruff: noqa: PLC0415  the process that shares tests out among others imports nothing: they would wait for it
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, settings

if TYPE_CHECKING:
    from running import Runner

_MOST_WORKERS = 8  # each imports torch for itself

settings.register_profile("edlm", max_examples=50, deadline=None, derandomize=True, print_blob=True)
settings.register_profile("thorough", max_examples=500, deadline=None, print_blob=True)  # other examples in every run
# For planted faults: that a test fails is all that is asked, not its smallest example.
settings.register_profile("no-shrinking", settings.get_profile("edlm"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("edlm")


def pytest_configure(config: pytest.Config) -> None:
    """Run tests that are asked for by their names whatever their marks, unless `-m` is given too."""
    marks_given = any(str(word).startswith("-m") for word in config.invocation_params.args)
    if config.args and all("::" in name for name in config.args) and not marks_given:
        config.option.markexpr = ""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Share the whole suite between the cores; some files start sooner in this process."""
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS
    return min(len(os.sched_getaffinity(0)), _MOST_WORKERS) if whole else 0


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Use one thread where tests run, and keep what they import out of every search for garbage."""
    if not session.config.getoption("numprocesses", None):
        import torch

        torch.set_num_threads(1)  # the tensors are tiny: threads cost more than they save, and sums keep their order
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        gc.set_threshold(5_000, 10, 100)  # a whole search goes through all that is imported later


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> "Runner":
    """Runs a recipe in this process: `run("edlm_nce", "steps=3", config="tiny")`."""
    from running import Runner

    return Runner(monkeypatch, capfd)


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw noise by the operations that a device runs, which can be watched; a CPU has a shorter way in numpy."""
    from edlm.process import noise

    monkeypatch.setattr(noise, "philox", noise.in_torch)


@pytest.fixture(scope="session")
def large_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models under the names of large ones, with a tokenizer each."""
    import large_folders

    from edlm.data import vocabulary

    folder = tmp_path_factory.mktemp("large")
    for name, family in (("LLaDA-8B-Base", "llada"), ("Qwen2.5-7B", "qwen2")):
        large_folders.write(folder / name, family, large_folders.random_weights(family))
        (folder / name / "tokenizer.json").write_text(vocabulary.characters().tokenizer.to_str())
    return folder


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Leave no graph behind: the compiler counts those of all tests together against one limit."""
    import torch

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `denoiser` of a few steps; no test writes into it."""
    import smallest

    folder = tmp_path_factory.mktemp("trained")
    smallest.train("pretrain_denoiser", *smallest.denoiser_words(folder / "denoiser"), pixels=True)
    return folder


@pytest.fixture(scope="session")
def trained_ar(trained: Path) -> Path:
    """Beside the denoiser an AR model of a few steps, one of `other` vocabulary and one `without_bos`."""
    import smallest

    from edlm.data import vocabulary
    from edlm.nn.networks import Transformer
    from edlm.weights import checkpoints

    smallest.train("pretrain_ar", *smallest.ar_words(trained / "ar"), pixels=True)
    sizes = {**smallest.CAUSAL, "conditioning_size": 0, "causal": True}
    other = Transformer(4, smallest.LENGTH, **sizes)
    checkpoints.save_network(trained / "other", other, vocabulary.characters("abc"), {"bos_id": 3})
    without_bos = Transformer(28, smallest.LENGTH, **sizes)
    checkpoints.save_network(trained / "without_bos", without_bos, vocabulary.characters(), {})
    return trained


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Hugging Face's format."""
    import gpt2_folder

    transformers = pytest.importorskip("transformers", reason="needs pip install 'edlm-torch[judge]'")
    folder = tmp_path_factory.mktemp("gpt2")
    gpt2_folder.write(folder, transformers)
    return folder
