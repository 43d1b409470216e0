"""The variables of the environment that the library reads are the documented ones."""

import ast
from pathlib import Path

import edlm

ROOT = Path(__file__).parents[1]


def named(path: Path) -> set[str]:
    """The whole strings of a module that look like such a variable."""
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in texts if text.startswith("EDLM_") and text.isupper()}


def test_every_one_stands_in_the_documents_and_no_other() -> None:
    documents = "\n".join(path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md"))
    found = set().union(*map(named, Path(edlm.__file__).parent.rglob("*.py")))
    assert found == {"EDLM_COMPONENTS", "EDLM_DEBUG", "EDLM_LIMITS", "EDLM_UNVERIFIED"}
    assert all(f"`{name}" in documents or f"{name}=" in documents for name in found)
