"""One thread, and the same examples in every run."""

import pytest
import torch
from hypothesis import Phase, settings
from running import Runner

torch.set_num_threads(1)  # the tensors are tiny: threads cost more than they save, and one thread keeps sums in order
settings.register_profile("edlm", deadline=None, derandomize=True, print_blob=True)
# For planted faults: that a test fails is all that is asked, not its smallest example.
settings.register_profile("no-shrinking", settings.get_profile("edlm"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("edlm")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Runner:
    """Runs a recipe in this process: `run("edlm_nce", "steps=3", config="tiny")`."""
    return Runner(monkeypatch, capfd)
