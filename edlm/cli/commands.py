"""The command line, in the manner of `tune`: recipes, their configs, weights of others, and a look at the machine.

It loads no torch before it is needed.
"""

import argparse
import ast
import difflib
import importlib
import importlib.util
import logging
import os
import runpy
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from edlm import __version__
from edlm.cli import converting, keys
from edlm.runs import exits

_UNFIT = 1
_DEFAULT_CONFIG = "tiny"
_PROCESSES = "--nproc_per_node"
_COUNTED = ("auto", "cpu", "gpu")  # as of torchrun: as many as there are
# Those of torchrun for several machines, handed over as they are.
_MACHINES = ("--nnodes", "--node_rank", "--master_addr", "--master_port", "--rdzv_backend", "--rdzv_endpoint")
_EXAMPLES = """\
examples:
  edlm run edlm_nce                                   denoiser, energy, figures and text on the embedded corpus
  edlm run edlm_nce --config tiny steps=300 seed=1    any key of the config can be given as key=value
  edlm run --nproc_per_node 2 edlm_nce                two processes, on two devices or CPUs; torchrun works as well
  edlm run edlm_nce --help                            what a recipe does, and its default config with comments
  edlm run ./my_recipe.py --config my.yaml            a recipe of your own
  edlm ls                                             every recipe and config
  edlm cp edlm_nce/tiny my.yaml                       a config to edit
  edlm validate my.yaml                               check every key, and run nothing; or the words of `edlm run`
  edlm convert mdlm.ckpt runs/mdlm --tokenizer gpt2   published weights to a network folder, never executed
  edlm convert model.gguf checkpoints/model           a GGUF file to a folder in Hugging Face's layout
  edlm harness --model_args pretrained=runs/tiny/denoiser --tasks wikitext   tasks of lm_eval on a model of ours
  edlm doctor                                         versions, device, compiler, extras, and a second of sampling
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 2 on a mistake in it, with one line that says what would be right.

    What nothing has foreseen is a fault of ours: one line too, and 70. With EDLM_DEBUG set all errors are raised.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {
        "run": _run,
        "ls": _ls,
        "cp": _cp,
        "validate": _validate,
        "convert": converting.convert,
        "doctor": _doctor,
        "harness": _harness,
    }
    try:
        _command(commands, arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain when it exits
    except KeyboardInterrupt:
        if os.environ.get("EDLM_DEBUG"):
            raise
        print("edlm: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(exits.INTERRUPTED)
    except Exception as error:
        if os.environ.get("EDLM_DEBUG"):
            raise
        message, status = exits.explained(error)
        print(f"edlm: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(status)


def _command(commands: Mapping[str, Callable[[Sequence[str]], None]], arguments: Sequence[str]) -> None:
    """Do what the first word says; the help where there is none."""
    name = arguments[0] if arguments else "--help"
    if name in commands:
        commands[name](arguments[1:])
    elif name in ("-h", "--help"):
        _parser(list(commands)).print_help()
    elif name == "--version":
        print(f"edlm {__version__}")
    else:
        near = [f"run {name}"] if name in recipes() else difflib.get_close_matches(name, commands, n=1)
        hint = f"; did you mean `edlm {near[0]}`?" if near else "; `edlm --help` says what each does"
        raise ValueError(f"command {name!r} is not one of {', '.join(commands)}{hint}")


def _parser(commands: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edlm", description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=commands, help="what to do; `edlm COMMAND --help` says more")
    parser.add_argument("--version", action="store_true", help="print the version")
    return parser


def recipes_folder() -> Path:
    """Find where the recipes are installed: inside the package, or at the root of an editable repository."""
    spec = importlib.util.find_spec("edlm.recipes")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def recipes() -> dict[str, Path]:
    """Name and file of every recipe: those in the folder without a leading underscore."""
    return {file.stem: file for file in sorted(recipes_folder().glob("[!_]*.py"))}


def configs(recipe: str) -> dict[str, Path]:
    """Name and file of every config of a recipe."""
    return {file.stem: file for file in sorted(recipes_folder().glob(f"configs/{recipe}/*.yaml"))}


def _run(arguments: Sequence[str]) -> None:
    """Hand a recipe its config and overrides."""
    parser = argparse.ArgumentParser(prog="edlm run", add_help=False, description="Run a recipe.")
    parser.add_argument("recipe", nargs="?", help="a name from `edlm ls`, or a path to a recipe of your own")
    parser.add_argument("--config", help=f"a name from `edlm ls`, or a path; default: {_DEFAULT_CONFIG}")
    parser.add_argument("-h", "--help", action="store_true", help="show what the recipe does and its default config")
    parser.add_argument(_PROCESSES, metavar="N", help="so many processes on this machine; they share the work")
    for name in _MACHINES:
        parser.add_argument(name, metavar="VALUE", help="as of torchrun, for several machines")
    given, overrides = parser.parse_known_args(arguments)
    count = given.nproc_per_node
    if not (count in (None, *_COUNTED) or (count.isdecimal() and int(count) >= 1)):
        raise ValueError(f"{_PROCESSES} {count} must be a whole number of at least 1, or {', '.join(_COUNTED)}")
    if given.recipe is None:
        parser.print_help()
        if not given.help:
            sys.exit(exits.USAGE_ERROR)
        return
    file = _recipe_file(given.recipe)
    if given.help:
        _explain(file)
        return
    config = _config_of(file, given.config or _DEFAULT_CONFIG)
    _require_keys(file, config, overrides)
    machines = {name: getattr(given, name.lstrip("-")) for name in (_PROCESSES, *_MACHINES)}
    processes = [word for name, value in machines.items() if value is not None for word in (name, value)]
    if processes:
        _launch(processes, file, ["--config", str(config), *overrides])
        return
    sys.argv = [str(file), "--config", str(config), *overrides]
    with _naming(file):
        runpy.run_path(str(file), run_name="__main__")


def _launch(processes: list[str], file: Path, arguments: list[str]) -> None:
    """Run a recipe in several processes through torchrun, and exit as the first of them that fails."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("agent.server.api", "multiprocessing.api"):  # what went wrong, the first process has said
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    alone = [] if any(name in processes for name in _MACHINES) else ["--standalone"]  # finds a free port itself
    recipe = ["-m", f"edlm.recipes.{file.stem}"] if _is_ours(file) else [str(file)]
    try:
        run.run(run.parse_args([*alone, *processes, *recipe, *arguments]))
    except ChildFailedError as failed:
        status = failed.get_first_failure()[1].exitcode
        sys.exit(128 - status if status < 0 else status)  # a child that a signal ended has minus its number
    except SignalException as stop:
        sys.exit(128 + stop.sigval)


def _ls(arguments: Sequence[str]) -> None:
    """List recipes and configs, one line each."""
    argparse.ArgumentParser(prog="edlm ls", description=_ls.__doc__).parse_args(arguments)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for name, file in recipes().items():
        _print_entry(name, _first_sentence(_description(file).splitlines()), width)
        for config, path in configs(name).items():
            _print_entry(f"  {config}", _first_sentence(_comments(path)[1:]), width)


def _print_entry(name: str, sentence: str, width: int | None) -> None:
    """Print a name and what it is; in a terminal the lines that it takes stand below one another."""
    entry = f"{name:<20} {sentence}"
    print(entry if width is None else textwrap.fill(entry, max(width, 40), subsequent_indent=" " * 21))


def _cp(arguments: Sequence[str]) -> None:
    """Copy a config to a file of your own, to edit it."""
    parser = argparse.ArgumentParser(prog="edlm cp", description=_cp.__doc__)
    parser.add_argument("config", help=f"recipe/config, as listed by `edlm ls`; a recipe alone: its {_DEFAULT_CONFIG}")
    parser.add_argument("path", type=Path, nargs="?", help="where to; default: recipe_config.yaml; never overwritten")
    given = parser.parse_args(arguments)
    recipe, _, name = given.config.partition("/")
    source = _config_file(_recipe_file(recipe).stem, name or _DEFAULT_CONFIG)
    own = f"{recipe}_{source.stem}.yaml"
    target = Path(own) if given.path is None else given.path / own if given.path.is_dir() else given.path
    if target.exists():
        raise ValueError(f"{target} exists already; remove it or choose another path")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    print(f"wrote {target}; run it with: edlm run {recipe} --config {target}")


def _validate(arguments: Sequence[str]) -> None:
    """Check every key, type and range of a config without running it."""
    parser = argparse.ArgumentParser(prog="edlm validate", description=_validate.__doc__)
    parser.add_argument("what", help="recipe/config as listed by `edlm ls`, a recipe alone, or the path of a config")
    parser.add_argument("--config", help="of a recipe alone: the name or the path of its config, as of `edlm run`")
    parser.add_argument("overrides", nargs="*", help="key=value")
    given, others = parser.parse_known_args(arguments)
    given.overrides += others  # flags, of which it is said what would be right
    path = Path(given.what)
    if given.config is not None:
        path = _config_of(_recipe_file(given.what), given.config)
    elif not path.is_file():
        recipe, _, name = given.what.partition("/")
        if recipe not in recipes():
            raise ValueError(f"config {given.what!r} is no file, and no recipe/config that `edlm ls` lists")
        path = _config_file(recipe, name or _DEFAULT_CONFIG)
    file = _recipe_named_in(path)
    _require_keys(file, path, given.overrides)
    entry = importlib.import_module("edlm.runs.entry")
    schema = _schema_of(file)
    sys.argv = ["edlm validate", "--config", str(path), *given.overrides]
    entry.enter(lambda settings: print(f"{path}: a valid config of {file.stem}"), schema, writes=False)


def _doctor(arguments: Sequence[str]) -> None:
    """Say what this machine has and lacks, and draw a few texts; exits with 1 if something that is needed is wrong."""
    argparse.ArgumentParser(prog="edlm doctor", description=_doctor.__doc__).parse_args(arguments)
    doctor = importlib.import_module("edlm.cli.doctor")
    findings = list(doctor.examine())
    print(doctor.table(findings))
    if not all(finding.suffices for finding in findings):
        sys.exit(_UNFIT)


def _harness(arguments: Sequence[str]) -> None:
    """Run tasks of `lm_eval` on a model of ours: its own command line, with the model `edlm` beside those it has."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("`edlm harness` runs lm_eval: pip install 'edlm-torch[harness]'")
    harness = importlib.import_module("edlm.evaluation.harness")
    asks = any(word in ("--model_args", "-a") for word in arguments)
    named = any(word in ("--model", "-M") for word in arguments)
    sys.argv = ["lm_eval", *arguments, *(["--model", harness.NAME] if asks and not named else [])]
    harness.run()


def _recipe_file(name: str) -> Path:
    known = recipes()
    if name in known:
        return known[name]
    if name.endswith(".py"):
        if Path(name).is_file():
            return Path(name)
        raise ValueError(f"recipe {name}: no such file")
    recipe, slash, config = name.partition("/")
    if slash and recipe in known:
        raise ValueError(f"recipe {name!r} is a recipe and its config: edlm run {recipe} --config {config}")
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"recipe {name!r} is not one of {', '.join(known)}, nor a path that ends in .py{hint}")


def _config_of(file: Path, name: str) -> Path:
    """A config of a recipe. Raises ValueError for one of another recipe than this one of ours."""
    config = _config_file(file.stem, name)
    named = _recipe_named_in(config).stem if _is_ours(file) else file.stem
    if named != file.stem:
        raise ValueError(f"{config} is a config of {named}, not of {file.stem}: edlm run {named} --config {config}")
    return config


def _config_file(recipe: str, name: str) -> Path:
    known = configs(recipe)
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name)
    names = ", ".join(known) or "none of its own"
    raise ValueError(f"config {name!r} is no file, and recipe {recipe} has {names}")


def _require_keys(file: Path, config: Path, overrides: Sequence[str]) -> None:
    """Raise ValueError for a config without --config before it, and for a key that a recipe of ours does not know."""
    for word in overrides:
        if word in configs(file.stem) or ("=" not in word and word.endswith((".yaml", ".yml"))):
            raise ValueError(f"{word!r} must be key=value; a config is given as --config {word}")
    if _is_ours(file):
        keys.require_known(file.stem, config, overrides, config in configs(file.stem).values())


def _is_ours(file: Path) -> bool:
    return file.parent == recipes_folder()


def _schema_of(file: Path) -> Mapping[str, Any]:
    """The `SETTINGS` of a recipe, of ours or of the user's own, which is imported. Raises ValueError if it has none."""
    if _is_ours(file):
        return importlib.import_module(f"edlm.recipes.{file.stem}").SETTINGS
    with _naming(file):
        found = runpy.run_path(str(file), run_name=file.stem).get("SETTINGS")
    if not isinstance(found, Mapping):
        raise ValueError(f"{file} has no SETTINGS, a mapping of every key to its check, by which a config is validated")
    return found


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turn whatever a recipe of the user's own raises into a ValueError that names it; ours are let through."""
    try:
        yield
    except Exception as error:
        if _is_ours(file):
            raise
        raise ValueError(f"{file}: {type(error).__name__}: {error}; EDLM_DEBUG=1 shows where") from error


def _recipe_named_in(path: Path) -> Path:
    """The file of the recipe that a config is for."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no config, but a file that is not text") from error
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == "recipe":
            return _recipe_file(value.split("#")[0].strip())
    raise ValueError(f"{path}: the key 'recipe' is missing; it names the recipe the config is for")


def _description(file: Path) -> str:
    """The docstring of a recipe. Raises ValueError for a file that is no Python."""
    with _naming(file):
        return ast.get_docstring(ast.parse(file.read_bytes())) or ""


def _explain(file: Path) -> None:
    print(_description(file) or f"{file}: no description")
    if known := configs(file.stem):
        print(f"\nconfigs: {', '.join(known)}")
    if _DEFAULT_CONFIG in known:
        print(f"\nThe default config, {_DEFAULT_CONFIG}. Any key can be given as key=value or section.key=value:\n")
        print(known[_DEFAULT_CONFIG].read_text(encoding="utf-8"))


def _comments(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]


def _first_sentence(lines: Sequence[str]) -> str:
    """The first line, with those after it that its last sentence goes on in."""
    found: list[str] = []
    for line in map(str.strip, lines):
        if not line or (found and found[-1].endswith((".", ":"))):
            break
        found.append(line)
    return " ".join(found).removesuffix(":").removesuffix(".") + "." * bool(found)


if __name__ == "__main__":
    main()
