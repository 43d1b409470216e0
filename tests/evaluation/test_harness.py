"""`edlm harness` on the tasks and with the commands of `docs/howto/harness.md`, offline."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpt2_folder
import pytest
from commands import in_markdown

from edlm.cli import commands
from edlm.data import vocabulary
from edlm.evaluation import continuations
from edlm.evaluation.continuations import Reading, Wanted
from edlm.weights import hub

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "harness.md").read_text("utf-8")
LETTERS = vocabulary.characters()


@pytest.fixture
def workplace(trained_ar: Path, tmp_path: Path) -> Path:
    """A folder with the networks and the tasks that the page names."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(trained_ar)
    (tmp_path / "tasks").mkdir()
    blocks = re.findall(r"```yaml\n# (tasks/(\w+)\.yaml)\n(.*?)```\n\n```json\n(.*?)```", PAGE, flags=re.DOTALL)
    assert [name for _, name, _, _ in blocks] == ["words", "sentences", "endings"]
    for file, name, task, data in blocks:
        (tmp_path / file).write_text(task)
        (tmp_path / "tasks" / f"{name}.jsonl").write_text(data)
    return tmp_path


def run_all(shown: list[list[str]], folder: Path) -> None:
    """Run commands one after the other in one process, without a hub."""
    program = "import json, sys; from edlm.cli import commands; [commands.main(w[1:]) for w in json.loads(sys.argv[1])]"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", program, json.dumps(shown)]
    ran = subprocess.run(words, cwd=folder, env=os.environ | offline, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_without_lm_eval_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        commands.main(["harness", "--tasks", "words"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "edlm: `edlm harness` runs lm_eval: pip install 'edlm-torch[harness]'\n"


@pytest.mark.harness
def test_every_command_of_the_page_runs_offline_and_says_what_is_exact(workplace: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs pip install 'edlm-torch[harness]'")
    shown = [words for words in in_markdown(PAGE) if words[:2] == ["edlm", "harness"]]
    outputs = [f"results{number}" for number in range(3)]
    run_all(
        [[*words, "--output_path", to, "--log_samples"] for words, to in zip(shown, outputs, strict=True)], workplace
    )
    for number, (words, to) in enumerate(zip(shown, outputs, strict=True)):
        file = next((workplace / to).rglob("results_*.json"))
        config, results = (json.loads(file.read_text())[key] for key in ("config", "results"))
        assert set(results) == set(words[words.index("--tasks") + 1].split(","))
        check(config, file, number)


def check(config: dict[str, Any], file: Path, number: int) -> None:
    """What stands in the results is what the model itself answers."""
    assert config["likelihood_is_exact"] == (number > 0)
    assert config["num_draws"] == (16 if number == 0 else None)
    folder = file.parents[2] / ("runs/tiny/ar" if number == 2 else "runs/tiny/denoiser")
    model = hub.from_pretrained(folder)
    reading = Reading(model, **[{"num_draws": 16}, {"plan": "left_to_right"}, {}][number])
    assert config["likelihood"] == reading.likelihood
    assert config["model_sha256"] == model.found.weights
    assert ("likelihood_mean_error_nats" in config) == (number == 0)
    logged = {each.stem.split("_")[1]: each for each in file.parent.glob("samples_*.jsonl")}
    (first, _) = map(json.loads, logged["words"].read_text().splitlines())
    pairs = [
        continuations.encode_pair(LETTERS, "the name of the", each) for each in (" function", " zqxjk")
    ]  # a delimiter in front
    expected = [answer.log_prob for answer in continuations.score(reading, pairs)]
    assert [float(answer[0][0]) for answer in first["resps"]] == pytest.approx(expected, rel=1e-6)
    if "endings" in logged:
        (written,) = map(json.loads, logged["endings"].read_text().splitlines())
        assert written["resps"] == [[continuations.complete(reading, "the name of t", Wanted((" ",), 8, 0.8))]]


@pytest.mark.harness
def test_the_model_class_refuses_what_it_does_not_know(trained_ar: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs pip install 'edlm-torch[harness]'")
    from edlm.evaluation import harness as module  # noqa: PLC0415  registers itself

    folder = str(trained_ar / "denoiser")
    with pytest.raises(ValueError, match=r"^model_args: num_draw is not known; known are pretrained, length, revision"):
        module.Edlm(folder, num_draw=3)
    with pytest.raises(ValueError, match=r"^batch_size = 'auto' must be a whole number of at least 1$"):
        module.Edlm(folder, batch_size="auto")
    with pytest.raises(ValueError, match=r"^generation_kwargs: top_k is not known; known are until, temperature, "):
        module.wanted({"top_k": 3})
    assert module.wanted({"until": "\n"}) == Wanted(("\n",), temperature=0.0)
    assert module.wanted({"do_sample": True, "max_new_tokens": 3, "top_p": 0.9}) == Wanted(most=3, nucleus=0.9)
    assert module.wanted({"do_sample": False, "temperature": 0.7}).temperature == 0.0


@pytest.mark.harness
def test_the_same_request_asked_again_has_noise_of_its_own(trained_ar: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs pip install 'edlm-torch[harness]'")
    from edlm.evaluation import harness as module  # noqa: PLC0415

    model = module.Edlm(str(trained_ar / "denoiser"), block_length=8)
    request = SimpleNamespace(args=("the name", {"until": [], "max_gen_toks": 8, "do_sample": True}))
    written = model.generate_until([request] * 3, disable_tqdm=True)
    assert len(set(written)) == 3
    assert written == model.generate_until([request] * 3, disable_tqdm=True)


@pytest.mark.harness
@pytest.mark.filterwarnings("ignore")
def test_log_likelihoods_are_those_of_the_harness_s_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random GPT-2 by `hf` and by `edlm`: empty contexts, which both begin with a bos, and others without any."""
    for package in ("lm_eval", "transformers", "accelerate"):
        pytest.importorskip(package, reason="needs pip install 'edlm-torch[harness,judge]' accelerate peft")
    import transformers  # noqa: PLC0415
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    from edlm.evaluation import harness as module  # noqa: PLC0415

    monkeypatch.setattr(gpt2_folder, "CONTEXT", 16)
    gpt2_folder.write(tmp_path, transformers)
    own = HFLM(pretrained=str(tmp_path), device="cpu", dtype="float32", batch_size=1)

    def close(name: str, *asked: tuple[Any, ...]) -> None:
        found = [getattr(model, name)(list(map(request, asked))) for model in (own, module.Edlm(str(tmp_path)))]
        numbers = [[each[0] if isinstance(each, tuple) else each for each in answers] for answers in found]
        assert numbers[1] == pytest.approx(numbers[0], abs=1e-4)

    close("loglikelihood", ("", "the name"), ("", "rose of old the name"))
    close("loglikelihood_rolling", ("rose is a name",))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "bos_token_id": None}))
    close("loglikelihood", ("the name of", " the rose"), ("the ", "rose is"), ("a name that the rose", " has of old"))


def request(arguments: tuple[Any, ...]) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)
