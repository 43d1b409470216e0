"""The documents are true: links lead somewhere, named functions exist, and the README's code runs."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from builders import tiny_denoiser, tiny_energy

from edlm import checkpoints, networks, pipelines, samplers, schedules, vocabulary

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_to_a_file(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text("utf-8"))
    assert not [link for link in links if not (document.parent / link).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_named_function_exists(document: Path) -> None:
    """`module.function` in code style, with or without `edlm.` in front."""
    text = document.read_text("utf-8")
    modules = {path.stem for path in (ROOT / "edlm").glob("[!_]*.py")}
    named = [
        name.removeprefix("edlm.").split(".") for name in re.findall(r"`((?:edlm\.)?[a-z_]+\.\w+)(?:\([^`]*)?`", text)
    ]
    missing = [
        f"{module}.{name}"
        for module, name in (parts for parts in named if len(parts) == 2)
        if module in modules and name not in ("py", "md") and not hasattr(import_module(f"edlm.{module}"), name)
    ]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_named_test_exists(document: Path) -> None:
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"\b(test_\w{8,})\b(?!\.py)", document.read_text("utf-8")))
    assert not {name for name in named if f"def {name}(" not in tests}


def test_the_readme_opens_with_the_two_commands_and_its_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    assert [code.strip() for language, code in blocks if language == "bash"] == [
        "pip install . && edlm run edlm_nce",
        "pip install '.[dev]' && pytest",
    ]
    torch.manual_seed(0)
    characters = vocabulary.characters()
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "conditioning_size": 8}
    denoiser = networks.Transformer(28, 128, **sizes)
    checkpoints.save_network(tmp_path / "runs/tiny/denoiser", denoiser, characters, {})
    checkpoints.save_network(tmp_path / "runs/tiny/energy", networks.EnergyNetwork(28, 128, **sizes), characters, {})
    monkeypatch.chdir(tmp_path)
    for language, code in blocks:
        if language == "python":
            exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert out.startswith("denoise  x_t, t, positions -> hidden\npropose  ")


def test_the_step_is_printed_as_the_documents_show_it() -> None:
    kernel = samplers.importance(schedules.log_linear(), tiny_denoiser(), tiny_energy(), num_particles=8)
    assert pipelines.describe(kernel.step) in (ROOT / "docs" / "architecture.md").read_text("utf-8")
