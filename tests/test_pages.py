"""Every block of code of every page runs, with what the page itself has made before it; every command would start."""

from pathlib import Path

import gpt2_folder
import pages
import pytest
import smallest
import torch
import yaml
from commands import in_markdown
from pages import PAGES, ROOT, name_of
from tokenizers import ByteLevelBPETokenizer

from edlm.cli import commands
from edlm.data import vocabulary
from edlm.nn import networks
from edlm.weights import checkpoints

# Pages whose code needs more than files: the test that runs it instead.
ELSEWHERE = {
    "docs/howto/checkpoints.md": "tests/weights/test_large.py::test_the_documented_way_runs",
    "docs/howto/extend.md": "tests/recipes/test_own_parts.py::test_a_plan_of_ones_own_reveals_block_by_block",
}
SMALLER = {"docs/lab/results.md": {"arange(16)": "arange(1)", "Grid(8)": "Grid(2)", "candidates=8": "candidates=2"}}
WITH_PYTHON = [page for page in PAGES if pages.blocks(page.read_text("utf-8"), "python")]
NOTES = {"schedule": {"_component_": "edlm.schedules.log_linear"}, "time_conditioning": False}
MADE = {  # each network, and what training would have noted of it
    "tiny/denoiser": (networks.Transformer, {"conditioning_size": 8}, NOTES),
    "tiny/energy": (networks.EnergyNetwork, {"conditioning_size": 8}, {}),
    "tiny/transition": (networks.EnergyNetwork, {"conditioning_size": 8}, {"scope": "transition"}),
    "tiny/joint": (networks.JointNetwork, {"conditioning_size": 8}, NOTES),
    "tiny/ar": (networks.Transformer, {"conditioning_size": 0, "causal": True}, {"bos_id": 27}),
    "english27/denoiser": (networks.Transformer, {"conditioning_size": 8}, NOTES),
}
TEXT = "the name of the rose is the name that the rose has of old and it is a name like this one " * 80


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands of the pages would have left there, of random weights."""
    folder = tmp_path_factory.mktemp("pages")
    torch.manual_seed(0)
    for name, (build, sizes, notes) in MADE.items():
        network = build(28, 256, hidden_size=16, num_layers=1, num_heads=2, **sizes)
        checkpoints.save_network(folder / "runs" / name, network, vocabulary.characters(), notes)
    (folder / "gpt2").mkdir()
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([TEXT], vocab_size=280, special_tokens=["<|endoftext|>"])
    tokenizer.save_model(str(folder / "gpt2"))
    for name in ("FOLDER", "data/wikitext103"):
        (folder / name).mkdir(parents=True)
        for split in ("train", "valid", "test"):
            (folder / name / f"{split}.txt").write_text(TEXT)
    return folder


@pytest.fixture
def published(place: Path) -> None:
    """Beside it, the folder of an adapted model, where `transformers` is installed."""
    adapted = place / "runs/smollm2/adapted/checkpoints/step_00000400"
    if not adapted.exists():
        adapted.mkdir(parents=True)
        gpt2_folder.write(adapted, pytest.importorskip("transformers", reason="needs pip install 'edlm-torch[judge]'"))


@pytest.mark.parametrize("page", [each for each in WITH_PYTHON if name_of(each) not in ELSEWHERE], ids=name_of)
def test_the_code_of_a_page_runs(
    page: Path, place: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    text = page.read_text("utf-8")
    if "transformers" in text and "AutoModel" in text:
        request.getfixturevalue("published")
    monkeypatch.chdir(place)
    pages.run_python(text, page.name, SMALLER.get(name_of(page), {}))


def test_code_that_uses_what_its_page_has_not_made_is_a_fault() -> None:
    with pytest.raises(NameError, match="denoiser"):
        pages.run_python("```python\nprint(denoiser)\n```\n", "page.md", {})
    with pytest.raises(ZeroDivisionError):
        pages.run_python("```python\na = 0\n```\ntext\n```python\n1 / a\n```\n", "page.md", {})


def test_the_code_that_is_run_elsewhere_is() -> None:
    for page, test in ELSEWHERE.items():
        file, _, name = test.partition("::")
        assert (ROOT / page).is_file()
        assert f"def {name}(" in (ROOT / file).read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_known_language_and_every_config_is_yaml(page: Path) -> None:
    found = pages.blocks(page.read_text("utf-8"))
    assert {language for language, _ in found} <= pages.LANGUAGES
    for language, code in found:
        if language in ("yaml", "yml"):
            assert isinstance(yaml.safe_load(code), dict)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_one_that_would_start(page: Path) -> None:
    shown = [words for words in in_markdown(page.read_text("utf-8")) if words]
    assert not [problem for words in shown if (problem := pages.complaint(words))]


@pytest.mark.parametrize(
    "line",
    [
        "edlm rum edlm_nce",
        "edlm run edlm_nse --help",
        "edlm cp edlm_nce/small my.yaml",
        "pip install '.[juge]'",
        "pip install torch",
        "python tests/fuz.py",
        "python tests/fuzz.py --case 3",
        "pytest tests/test_nothing.py",
        "pytest tests/test_pages.py -k no_such_thing_of_a_test",
        "torchrun -m edlm.recipes.pretrain",
        "wget https://example.org",
    ],
)
def test_a_command_that_would_not_start_is_a_fault(line: str) -> None:
    line = line.replace("no_such_thing_of_a_test", "no_such_thing" + "_at_all")
    [words] = in_markdown(f"```bash\n{line}\n```\n")
    assert pages.complaint(words)


def test_the_first_commands_work_as_they_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that look, copy and check, of every page, in one folder."""
    monkeypatch.chdir(tmp_path)
    quick = [words for page in PAGES for words in in_markdown(page.read_text("utf-8")) if is_quick(words)]
    assert ["edlm", "cp", "edlm_nce/tiny", "my.yaml"] in quick
    assert [words for words in quick if status_of(words[1:])] == []
    assert "edlm_nce" in capsys.readouterr().out


def status_of(words: list[str]) -> int:
    try:
        commands.main(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def is_quick(words: list[str]) -> bool:
    """Whether a command of `edlm` takes no time, and needs nothing but what was copied before it."""
    return words[:1] == ["edlm"] and (words[1:2] in (["ls"], ["cp"], ["validate"], ["--version"]) or "--help" in words)


def is_there(overrides: list[str]) -> bool:
    """Whether a run reads nothing but the networks of `MADE`: what other commands train or write is left out."""
    values = [word.partition("=")[2] for word in overrides if not word.startswith("output=")]
    known = [value.removeprefix("runs/") in MADE for value in values if value.startswith(("runs/", "checkpoints/"))]
    return all(known) and not any("my_" in word for word in overrides)


GENERATED = {
    " ".join(run.overrides): run
    for page in PAGES
    for words in in_markdown(page.read_text("utf-8"))
    if (run := pages.run_of(words)) and run.recipe == "generate" and run.config == "tiny" and is_there(run.overrides)
}


@pytest.mark.parametrize("overrides", GENERATED, ids=str)
def test_what_generates_texts_from_the_default_runs_does(
    overrides: str, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With fewer texts and steps, from networks of random weights."""
    monkeypatch.chdir(place)
    words = GENERATED[overrides].overrides
    small = ["num_samples=1", "batch_size=1", "threads=1", f"output={tmp_path / 'texts.jsonl'}"]
    given = {word.partition("=")[0] for word in words}
    small += [word for word in ("length=16", "num_steps=2") if word.partition("=")[0] not in given - {"num_steps"}]
    smallest.train("generate", *words, *small)
    assert (tmp_path / "texts.jsonl").read_text("utf-8").count("\n") == 1
