"""The files of parts of one's own that `docs/howto/extend.md` shows."""

import re
import sys
from pathlib import Path

import pytest

from edlm.samplers import planning, plans  # noqa: F401  whose values are registered

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "extend.md"
TEXT = PAGE.read_text("utf-8")
FILES = dict(re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", TEXT, flags=re.DOTALL))
[SECTION] = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)


def write(folder: Path) -> Path:
    """Write them into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, code in FILES.items():
        (folder / name).write_text(code, encoding="utf-8")
    return folder


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have imports of these files, what they register and the folders where they were found last for one test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in re.findall(r'^    name = "(\w+)"', TEXT, flags=re.MULTILINE):
        monkeypatch.setitem(planning.PLANS, name, None)  # taken away again afterwards, whatever is registered
        del planning.PLANS[name]
    for name in FILES:
        sys.modules.pop(Path(name).stem, None)
