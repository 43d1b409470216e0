"""`generate` with large models by config: tiny folders in the formats of LLaDA, Dream, Qwen and Llama, end to end."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import hub_folders
import pytest
import torch
from large_folders import BOS, FEWER, KV, LENGTH, MASK, V, ar_network, random_weights, write, write_hub
from omegaconf import OmegaConf
from running import Ran, Runner
from torch import Tensor

import edlm
from edlm import testing
from edlm.cli import commands
from edlm.data import vocabulary
from edlm.models import autoregressive, denoisers, energies
from edlm.nn import decoders
from edlm.process import schedules
from edlm.weights import large, memory, resolve

BUILDER = {"vocab_size": FEWER, "num_layers": 2, "num_heads": 4, "num_kv_heads": KV, "embed_dim": 16}
BUILDER |= {"intermediate_dim": 24, "max_seq_len": 32, "rope_base": 500.0}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each model; the tokenizer is that of 27 characters, in Qwen's, Llama's and LLaDA's folders."""
    return write_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def run(run: Runner) -> Run:
    """Run `generate` in this process: exit status, standard output, and the lines of standard error that are ours."""

    def call(config: str, *overrides: str) -> Ran:
        return run("generate", *overrides, config=config)

    return call


def small(output: Path) -> list[str]:
    return [f"output={output}", "device=cpu", "threads=1", "precision=null", f"length={LENGTH}", "num_samples=3"]


def dream(hub: Path, output: Path) -> list[str]:
    """Overrides of dream_qwen_energy but for its AR model."""
    return [f"denoiser={hub / 'dream'}", f"tokenizer={hub / 'qwen2' / 'tokenizer.json'}", *small(output)]


def section(hub: Path) -> list[str]:
    """The AR model by a torchtune builder and checkpointer."""
    builder = [f"ar.model.{name}={value}" for name, value in BUILDER.items()]
    return [
        "ar.model._component_=torchtune.models.qwen2.qwen2",
        *builder,
        f"ar.checkpointer.checkpoint_dir={hub / 'qwen2'}",
    ]


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def texts(file: Path) -> list[list[int]]:
    return [record["tokens"] for record in records(file)]


def drawn(hub: Path, ar: decoders.DecoderNetwork, carry_over: bool = True, prompt: tuple[int, ...] = ()) -> Tensor:
    """What the config dream_qwen_energy is to give, in code."""
    denoiser = denoisers.subs(large.load_diffusion(hub / "dream", LENGTH), MASK)
    energy = energies.residual_ar(ar, MASK, None, carry_over)
    kernel = builders.importance(schedules.log_linear(), denoiser, energy, 8)
    pipeline = builders.sampling(kernel, LENGTH, None, (0.0, 1.0), tokens_per_pass=2)
    return edlm.sample(pipeline, 3, seed=0, prompt=torch.tensor([BOS, *prompt]))["tokens"]


# ---- Sampling


def test_dream_with_a_torchtune_builder_and_checkpointer_as_its_energy(hub: Path, run: Run, tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    status, shown, error = run("dream_qwen_energy", *dream(hub, output), *section(hub))
    assert status == 0, error
    assert "at most" in shown, "the plan comes before the texts"
    assert shown.index("at most") < shown.index("sample 0")
    assert texts(output) == drawn(hub, ar_network(hub, "qwen2")).tolist()
    for record in records(output):
        assert record["tokens"][0] == BOS, "nothing predicts Dream's first token"
        assert MASK not in record["tokens"]
        assert max(record["tokens"]) < FEWER, "ids that the energy's model does not know are impossible"
        assert len(record["text"]) <= LENGTH
        assert record["energy_passes"] == 8 * record["denoiser_passes"] > 0


@pytest.mark.parametrize(("family", "form"), [("qwen2", "carry_over"), ("llama", "carry_over"), ("qwen2", "posterior")])
def test_dream_with_a_folder_of_the_hub_as_its_energy(
    hub: Path, run: Run, tmp_path: Path, family: str, form: str
) -> None:
    output = tmp_path / "x.jsonl"
    status, _, error = run("dream_qwen_energy", *dream(hub, output), f"ar={hub / family}", f"ar_form={form}")
    assert status == 0, error
    assert texts(output) == drawn(hub, ar_network(hub, family), form == "carry_over").tolist()


def test_neither_batches_nor_rows_at_once_change_a_text(hub: Path, run: Run, tmp_path: Path) -> None:
    found = []
    for index, changes in enumerate((["batch_size=1"], ["batch_size=3", "energy_rows=1"], ["energy_rows=null"])):
        output = tmp_path / f"{index}.jsonl"
        status, _, error = run(
            "dream_qwen_energy", *dream(hub, output), f"ar={hub / 'qwen2'}", "prompt=the _b", *changes
        )
        assert status == 0, error
        found.append(records(output))
    assert [[record["tokens"] for record in each] for each in found] == 3 * [[r["tokens"] for r in found[0]]]
    assert len({record["settings"] for each in found for record in each}) == 1
    prompt = (*vocabulary.characters().encode("the ").tolist(), MASK, 1)
    assert found[0][0]["tokens"] == drawn(hub, ar_network(hub, "qwen2"), prompt=prompt)[0].tolist()
    assert found[0][0]["tokens"][1:5] == list(prompt[:4])


@pytest.mark.parametrize("family", ["dream", "llada"])
def test_a_decoder_writes_in_order(family: str, hub: Path, run: Run, tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    words = {"energy": "chain_rule", "selection": "speculative", "tokens_per_pass": 4, "ar": "null", "window": "[0,1]"}
    given = [*dream(hub, output), f"denoiser={hub / family}", *(f"{key}={value}" for key, value in words.items())]
    status, _, error = run("dream_qwen_energy", *given, "energy_rows=null", "energy_temperature=1.0", "num_steps=null")
    assert status == 0, error
    denoiser = denoisers.subs(large.load_diffusion(hub / family, LENGTH), MASK)
    correction = edlm.samplers.corrections.ChainRule()
    sampler = edlm.samplers.Sampler(denoiser, correction=correction, selection="speculative")
    sampler = sampler.replace(plan=edlm.plans.TokensPerPass(4))
    prompt = torch.tensor([BOS]) if family == "dream" else None
    pipeline = edlm.pipelines.pipeline(sampler, LENGTH)
    assert texts(output) == edlm.sample(pipeline, 3, seed=0, prompt=prompt)["tokens"].tolist()


def test_what_transformers_runs_is_not_read_in_order(hub: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs pip install 'edlm-torch[families]'")
    folder = hub_folders.save(hub_folders.model("bert", transformers), tmp_path / "bert")
    settings = plain_settings(hub, tmp_path, denoiser=str(folder), energy="chain_rule", ar=None, tokenizer=None)
    with pytest.raises(ValueError, match="energy = 'chain_rule' needs a network that is read in order") as error:
        resolve.check({**settings, "energy_rows": None})
    assert str(error.value).endswith("bert' is run by `transformers`")


def test_llada_alone_runs_on_the_exact_masking_process(hub: Path, run: Run, tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    status, shown, error = run("llada", f"denoiser={hub / 'llada'}", *small(output))
    assert status == 0, error
    assert "at most" in shown
    denoiser = denoisers.subs(large.load_diffusion(hub / "llada", LENGTH), MASK)
    kernel = builders.ancestral(schedules.log_linear(), denoiser)
    pipeline = builders.sampling(kernel, LENGTH, None, tokens_per_pass=2)
    assert texts(output) == edlm.sample(pipeline, 3, seed=0)["tokens"].tolist()
    assert {record["denoiser_passes"] for record in records(output)} == {LENGTH // 2}


def test_precision_is_that_of_the_files_or_of_the_config(hub: Path, tmp_path: Path) -> None:
    for precision, expected in ((None, torch.float32), ("bfloat16", torch.bfloat16)):
        settings = plain_settings(hub, tmp_path, precision=precision)
        found = resolve.load(settings, torch.device("cpu"))
        for name, parameter in (*found.denoiser.named_parameters(), *found.correction.energy.named_parameters()):
            assert parameter.dtype == (torch.float32 if name.endswith("scale") else expected), name


def plain_settings(hub: Path, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    config = OmegaConf.load(commands.configs("generate")["dream_qwen_energy"])
    merged = OmegaConf.merge(config, OmegaConf.from_dotlist([*dream(hub, tmp_path / "x"), *section(hub)]))
    return {**OmegaConf.to_container(merged), **changes}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_large_models_keep_the_laws_and_are_one_graph(hub: Path, family: str) -> None:
    denoiser = denoisers.subs(large.load_diffusion(hub / family), MASK)
    energy = energies.residual_ar(ar_network(hub, "qwen2", rows=None), MASK, BOS, carry_over=family == "llada")
    testing.check_denoiser(denoiser, LENGTH)
    testing.check_energy(energy, V, MASK, LENGTH)
    for part in (denoiser, energy):
        testing.check_one_graph(part, testing.drafts(V, MASK, LENGTH))


# ---- The memory plan


def test_the_plan_needs_no_weights_and_is_that_of_the_loaded_networks(hub: Path, run: Run, tmp_path: Path) -> None:
    for family in ("dream", "qwen2"):
        bare = tmp_path / family
        bare.mkdir()
        for name in ("config.json", "tokenizer.json"):
            if (hub / family / name).is_file():
                (bare / name).write_text((hub / family / name).read_text())
    output = tmp_path / "texts" / "x.jsonl"
    status, shown, error = run(
        "dream_qwen_energy", *dream(tmp_path, output), f"ar={tmp_path / 'qwen2'}", "batch_size=2", "plan=true"
    )
    assert status == 0, error
    assert not output.parent.exists()
    denoiser, ar = large.load_diffusion(hub / "dream", LENGTH), ar_network(hub, "qwen2")
    plan = memory.memory_plan(denoiser, ar, 2, 8, LENGTH)
    outlined = memory.memory_plan(
        decoders.outline(large.read_diffusion(hub / "dream", LENGTH)),
        decoders.outline(large.read_autoregressive(hub / "qwen2", LENGTH, 4, V)),
        2,
        8,
        LENGTH,
    )
    assert outlined == plan
    rows = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert set(rows) == {*plan._fields, "at"}
    assert "2 texts of 12 tokens, 8 candidates each" in rows["drafts"]


# ---- Mistakes


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["tokenizer=null"], "dream/tokenizer.json: cannot be read"),
        (["ar={hub}/llada"], "model_type = 'llada' must be one of qwen2, llama"),
        (["denoiser={hub}/qwen2"], "model_type = 'qwen2' must be one of llada, Dream"),
        (["denoiser=/nowhere", "ar=null", "tokenizer=null", "energy_rows=null"], "/nowhere: no checkpoint there"),
        (["denoiser=/x", "ar=null"], "is for large models, and '/x' holds no config.json of one"),
        (["denoiser=/nowhere", "ar=null", "tokenizer=null"], "energy_rows = 4 is for large models"),
        (["denoiser=/nowhere", "ar=null", "tokenizer=null", "energy_rows=null", "precision=bfloat16"], "precision = "),
        (
            ["denoiser=/x", "ar=null", "tokenizer=null", "energy_rows=null", "plan=true"],
            "plan = True is for large models",
        ),
        (["length=64"], "reads 32 tokens, and a text has 64: give length="),
        (["ar.checkpointer.model_type=LLAMA9"], "model_type='LLAMA9'): KeyError: 'LLAMA9'"),
        (["ar.checkpointer.model_type=LLAMA9"], "ar.checkpointer: torchtune.training.FullModelHFCheckpointer("),
        (["ar.checkpointer.checkpoint_dir=/nowhere"], "/nowhere"),
        (["ar.checkpointer.checkpoint_files=[gone.safetensors]"], "gone.safetensors"),
        (["ar.model.num_layers=3"], "ar: the weights are not those of its config.json"),
        (["ar.model.vocab_size=37"], "ar: the weights are not those of its config.json"),
        (["ar.model.depth=3"], "ar.model.depth: unknown key"),
        (["ar.checkpointer.output_dir=x"], "ar.checkpointer.output_dir: unknown key"),
        (["ar.builder=x"], "ar.builder: unknown key"),
        (["execution=compile"], "execution = 'compile' needs energy_rows = null, or must be 'eager'"),
        (["energy_rows=0"], "energy_rows = 0 must be a whole number of at least 1"),
        (["precision=float8"], "precision = 'float8' must be one of float32, bfloat16"),
    ],
)
def test_a_mistake_gets_one_line(hub: Path, run: Run, tmp_path: Path, overrides: list[str], said: str) -> None:
    given = [*dream(hub, tmp_path / "x.jsonl"), *section(hub), *(word.replace("{hub}", str(hub)) for word in overrides)]
    status, _, error = run("dream_qwen_energy", *given)
    assert status == 2
    assert said.replace("{hub}", str(hub)) in error
    assert len(error.splitlines()) == 1
    assert not os.listdir(tmp_path)


def test_folders_that_do_not_go_together_get_one_line(hub: Path, run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write(other, "qwen2", random_weights("qwen2"), shards=1)
    (other / "tokenizer.json").write_text(vocabulary.characters("abc").tokenizer.to_str())
    status, _, error = run("dream_qwen_energy", *dream(hub, tmp_path / "x.jsonl"), f"ar={other}")
    assert status == 2
    assert "another tokenizer than the denoiser's" in error
    without_bos = write(tmp_path / "dream", "dream", random_weights("dream"), bos_token_id=None)
    given = [*dream(hub, tmp_path / "x.jsonl"), f"denoiser={without_bos}", f"ar={hub / 'qwen2'}"]
    status, _, error = run("dream_qwen_energy", *given)
    assert status == 2
    assert "bos_token_id is missing" in error


def test_a_torchtune_section_alone_is_drawn_with_its_cache(hub: Path, run: Run, tmp_path: Path) -> None:
    words = [*dream(hub, tmp_path / "x.jsonl"), *section(hub), "denoiser=null", "tokenizer=null", "num_samples=2"]
    status, _, error = run("dream_qwen_energy", *words, "energy_rows=null")
    assert (status, error) == (0, "")
    records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text("utf-8").splitlines()]
    tokens = torch.tensor([record["tokens"] for record in records])
    network = decoders.load(large.read_autoregressive(hub / "qwen2", LENGTH, vocab_size=FEWER + 1))
    with torch.no_grad():
        exact = autoregressive.ar_log_prob(network, tokens, 33, BOS).sum(1)
    assert [record["log_prob"] for record in records] == pytest.approx(exact.tolist(), rel=1e-4)
