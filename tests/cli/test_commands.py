"""The command line: it answers at once, finds recipes and configs, and says in one line what would be right."""

import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import config_keys
import pytest
from omegaconf import OmegaConf

from edlm.cli import commands, keys


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one call."""
    status = 0
    try:
        commands.main(arguments)
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, error = capsys.readouterr()
    return status, out, error


def works_less_than(seconds: float, *command: str) -> bool:
    """Tell whether a command takes no more of a core, whatever else the machine does, in one of three tries."""
    return any(worked(*command) < seconds for _ in range(3))


def worked(*command: str) -> float:
    """Measure the seconds of a core that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-P", *command], check=False, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_comes_at_once() -> None:
    assert works_less_than(0.5, "-m", "edlm.cli.commands", "--help")


def test_ls_names_every_recipe_and_config_in_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "ls")
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert status == 0
    assert all(len(line) == 2 for line in lines), "each line says what it is"
    assert {"edlm_nce", "generate", "pretrain_denoiser", "tiny", "english27", "text8", "owt"} <= {n for n, _ in lines}


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    """As `edlm ls | head -2`."""
    command, pipe = [sys.executable, "-m", "edlm.cli.commands", "ls"], subprocess.PIPE
    listing = subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd=tmp_path)
    assert listing.stdout is not None
    listing.stdout.close()
    _, error = listing.communicate()
    assert (listing.returncode, error) == (0, b"")


@pytest.mark.parametrize("recipe", commands.recipes())
def test_a_recipes_help_teaches_its_keys(capsys: pytest.CaptureFixture[str], recipe: str) -> None:
    status, out, _ = run(capsys, "run", recipe, "--help")
    assert status == 0
    assert f"edlm run {recipe}" in out
    assert "# null leaves torch its own choice" in out or "threads:" in out


def test_cp_writes_a_config_that_is_valid_and_overwrites_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = tmp_path / "my.yaml"
    assert run(capsys, "cp", "generate/tiny", str(target))[0] == 0
    assert target.read_text("utf-8") == commands.configs("generate")["tiny"].read_text("utf-8")
    status, _, error = run(capsys, "cp", "generate/tiny", str(target))
    assert status == 2
    assert "exists already" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["run", "edlm_ncee"],
            "recipe 'edlm_ncee' is not one of adapt, benchmark, distill, edlm_joint, edlm_nce, evaluate, frontier, "
            "generate, likelihoods, oracle, pretrain_ar, pretrain_denoiser, speedrun",
        ),
        (["run", "nowhere.py"], "recipe nowhere.py: no such file"),
        (["run", "edlm_nce", "english27"], "'english27' must be key=value; a config is given as --config english27"),
        (["validate", "edlm_nce", "seed=1", "english27"], "'english27' must be key=value; a config is given as --c"),
        (["run", "edlm_nce", "--config", "huge"], "config 'huge' is no file, and recipe edlm_nce has english27"),
        (["validate", "/nowhere.yaml"], "config '/nowhere.yaml' is no file, and no recipe/config that `edlm ls` lists"),
        (["validate", "edlm_nce/huge"], "config 'huge' is no file"),
        (["cp", "edlm_nce/huge", "x.yaml"], "config 'huge' is no file"),
        (["run", "--nproc_per_node", "0", "edlm_nce"], "--nproc_per_node 0 must be a whole number of at least 1, or"),
        (["run", "--nproc_per_node", "edlm_nce"], "--nproc_per_node edlm_nce must be a whole number of at least 1, or"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_status_two(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    status, _, error = run(capsys, *arguments)
    assert status == 2
    assert said in error
    assert len(error.splitlines()) == 1


def test_validate_takes_the_words_of_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A recipe and its config, by name or by path, and keys before and after."""
    own = tmp_path / "own.yaml"
    own.write_bytes(commands.configs("frontier")["tiny"].read_bytes())
    for words in (["--config", "english27", "corpus.path=text"], ["num_samples=4", "--config", str(own)]):
        status, out, _ = run(capsys, "validate", "frontier", *words)
        assert status == 0
        assert out.endswith("a valid config of frontier\n")
    for words, said in (
        (["frontier", "--config", "english27", "corpus.pat=text"], "corpus.pat: unknown key"),
        (["frontier", "--config", "english"], "config 'english' is no file, and recipe frontier has english27"),
        (["frontier/tiny", "--config", "tiny"], "recipe 'frontier/tiny' is a recipe and its config"),
        (["generate", "--config", str(own)], f"{own} is a config of frontier, not of generate"),
    ):
        status, out, error = run(capsys, "validate", *words)
        assert (status, out) == (2, "")
        assert error.startswith(f"edlm: {said}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"recipe: generate  # not this one\nseed: 0\n",
            "{} is a config of generate, not of oracle: edlm run generate",
        ),
        (b"\x00\xff\xfe weights", "{} is no config, but a file that is not text"),
        (b"once upon a time\n", "{}: the key 'recipe' is missing"),
        (b"recipe: oracle\nlength: 6: 7\n", "{} must be YAML (mapping values are not allowed"),
    ],
)
def test_a_file_that_is_no_config_of_the_recipe_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "given.yaml"
    path.write_bytes(content)
    status, _, error = run(capsys, "run", "oracle", "--config", str(path))
    assert status == 2
    assert error.startswith(f"edlm: {said.format(path)}")
    assert len(error.splitlines()) == 1


def test_an_unknown_command_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = run(capsys, "sing")
    assert status == 2
    assert error.startswith("edlm: command 'sing' is not one of run, ls, cp, validate, convert, doctor")


def test_no_word_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys)
    assert status == 0
    assert "edlm run edlm_nce" in out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"edlm {metadata.version('edlm-torch')}\n", "")


def test_a_recipe_alone_is_its_default_config(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "cp", "generate")[0] == 0
    assert Path("generate_tiny.yaml").read_text("utf-8") == commands.configs("generate")["tiny"].read_text("utf-8")
    assert run(capsys, "validate", "generate")[1].endswith("a valid config of generate\n")


@pytest.mark.parametrize("recipe", commands.recipes())
def test_ls_shows_whole_sentences(recipe: str) -> None:
    files = [commands.recipes()[recipe], *commands.configs(recipe).values()]
    for file in files:
        lines = commands._description(file).splitlines() if file.suffix == ".py" else commands._comments(file)[1:]
        said = commands._first_sentence(lines)
        assert said.endswith(".")
        assert said.count("`") % 2 == said.count("(") - said.count(")") == 0


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["One sentence.", "Another."], "One sentence."),
        (["One sentence", "on two lines.", "Another."], "One sentence on two lines."),
        (["What follows:", "a list"], "What follows."),
        (["No full stop", "", "a paragraph"], "No full stop."),
        (["", "a paragraph"], ""),
        ([], ""),
    ],
)
def test_the_first_sentence_ends_where_it_ends(lines: list[str], said: str) -> None:
    assert commands._first_sentence(lines) == said


def test_a_misspelt_key_is_refused_at_once() -> None:
    """Half a second, and nothing of torch loaded."""
    assert works_less_than(0.5, "-m", "edlm.cli.commands", "run", "edlm_nce", "stepz=3")
    code = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); "
    code += "from edlm.cli import commands; commands.main(['run', 'edlm_nce', 'stepz=3'])"
    done = subprocess.run([sys.executable, "-P", "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "False\n",
        "edlm: stepz: unknown key; did you mean 'steps'?\n",
    )


@pytest.mark.slow
def test_a_config_is_checked_in_the_time_that_what_it_is_built_on_takes_to_import() -> None:
    """Both are measured here, for a machine that does more at once takes longer for either."""
    ours, theirs = ("-m", "edlm.cli.commands", "validate", "generate"), ("-c", "import tensordict.nn")
    assert any(worked(*ours) < 1.5 * worked(*theirs) for _ in range(3))


@pytest.mark.parametrize("word", ["._component_=[null]", "._component_.=#", "._component_={a: 1}", "._component_=3"])
@pytest.mark.parametrize("recipe", commands.recipes())
def test_a_component_that_is_no_name_is_left_to_the_recipe(recipe: str, word: str) -> None:
    """Which names the key and the value; here nothing is known of what it takes."""
    config = next(iter(commands.configs(recipe).values()))
    loaded = OmegaConf.to_container(OmegaConf.load(config))
    components = [key for key, value in loaded.items() if isinstance(value, dict) and "_component_" in value]
    for key in components:
        keys.require_known(recipe, config, [f"{key}{word}"], is_ours=True)
    assert components or recipe in ("benchmark", "generate")


@pytest.mark.parametrize("value", ["{not yaml", "a # b", "- x", "[unclosed"])
def test_a_text_is_no_business_of_the_look_at_keys(value: str) -> None:
    config = commands.configs("generate")["tiny"]
    keys.require_known("generate", config, [f"prompt={value}", f"output={value}"], is_ours=True)


def test_a_key_of_our_own_config_is_known_whatever_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_known", lambda: {"recipes": {"edlm_nce": {"samples": {}}}, "components": {}})
    config = commands.configs("edlm_nce")["tiny"]
    keys.require_known("edlm_nce", config, ["pretrain.network.anything=3", "samples.seed=2"], is_ours=True)
    for word in ("stepz=3", "samples.sed=2"):
        with pytest.raises(ValueError, match="unknown key"):
            keys.require_known("edlm_nce", config, [word], is_ours=True)
    with pytest.raises(ValueError, match="unknown key"):
        keys.require_known("edlm_nce", config, [], is_ours=False)


def test_the_keys_on_disk_are_those_of_the_recipes() -> None:
    assert config_keys.FILE.read_text("utf-8") == config_keys.written(), "python tests/config_keys.py writes them"


def test_a_recipe_file_of_ones_own_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, config = tmp_path / "mine.py", tmp_path / "mine.yaml"
    config.write_text("greeting: hello\n")
    recipe.write_text("import sys\nprint('|'.join(sys.argv[1:]))\n")
    status, out, _ = run(capsys, "run", str(recipe), "--config", str(config), "greeting=salve")
    assert status == 0
    assert out.strip() == f"--config|{config}|greeting=salve"
