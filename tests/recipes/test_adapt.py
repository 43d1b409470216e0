"""`adapt` from a small model of ours and from a large model's folder: trained, stopped, resumed, sampled, refused."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hub_folder import hub_model
from interrupted import require_same_end
from smallest import CAUSAL, LENGTH, settings_of, words_of

from edlm.data import vocabulary
from edlm.nn.networks import Transformer
from edlm.objectives import batches
from edlm.recipes import generate
from edlm.recipes.adapt import Adapt, main
from edlm.training import log
from edlm.weights import checkpoints, loading

UPDATES = {
    "steps": 4,
    "batch_size": 4,
    "valid_every": 2,
    "valid_rows": 4,
    "save_every": 3,
    "log_every": 1,
    "length": 16,
}
LARGE = {"shifted": True, "ema_decay": 0.5, "recompute": True}


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "draw_curves", lambda _: None)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A causal network of ours, of random weights."""
    torch.manual_seed(3)
    network = Transformer(28, LENGTH, **CAUSAL, conditioning_size=0, causal=True, dropout=0.1)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    checkpoints.save_network(tmp_path / "ar", network, vocabulary.characters(), {"bos_id": 27})
    return tmp_path / "ar"


def words(start: Path, output: Path, **more: Any) -> list[str]:
    return [f"start_from={start}", f"output_dir={output}", "threads=1", *words_of({**UPDATES, **more})]


def test_a_model_of_ours_becomes_a_denoiser_of_ours(ours: Path, tmp_path: Path) -> None:
    made = Adapt(settings_of("adapt", *words(ours, tmp_path / "run")))
    made.setup()
    before = checkpoints.load_network(ours)
    for name, value in made.run.network.state_dict().items():
        assert torch.equal(value, before.state_dict()[name]), name
    main(settings_of("adapt", *words(ours, tmp_path / "run")))
    found = loading.denoiser(str(tmp_path / "run"), torch.device("cpu"))
    assert found.network.arguments["causal"] is False
    assert found.network.max_length == 16
    report = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    assert report["bytes_per_token"] == 1.0
    assert 0 < report["bits"] < 10
    assert (report["n"], report["step"]) == (4 * UPDATES["valid_rows"], UPDATES["steps"])
    assert checkpoints.find_network(tmp_path / "run").name == f"step_{UPDATES['steps']:08}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"lora": "{rank: 2, alpha: 4.0}"},
        {"optimizer._component_": "torch.optim.Adafactor"},
        {"opening_steps": 3},
    ],
)
def test_a_large_model_is_adapted_stopped_and_resumed_bit_for_bit(how: dict[str, Any], tmp_path: Path) -> None:
    start, more = hub_model(tmp_path / "hub"), {**LARGE, **how}
    ends = require_same_end(Adapt, main, lambda output: settings_of("adapt", *words(start, output, **more)), tmp_path)
    assert [end.name for end in ends.values()] == ["step_00000004"] * 2


def test_the_run_is_a_denoiser_everywhere_a_folder_of_a_large_model_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = hub_model(tmp_path / "hub")
    main(settings_of("adapt", *words(start, tmp_path / "run", **LARGE)))
    said = capsys.readouterr().out
    assert "before training: " in said
    assert "bytes a token" in said
    asked = {"denoiser": tmp_path / "run", "energy": None, "output": tmp_path / "texts.jsonl", "num_samples": 2}
    plain = {"num_steps": 4, "length": 8, "window": "[0.0,1.0]", "threads": 1, "num_particles": 1}
    generate.main(settings_of("generate", *words_of({**asked, **plain})))
    records = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text("utf-8").splitlines()]
    assert [len(record["tokens"]) for record in records] == [8, 8]
    assert all(token < 40 for record in records for token in record["tokens"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"shifted": True}, "shifted = True is for large models"),
        ({"lora": "{rank: 2, alpha: 4.0}"}, "is for large models"),
        ({"tokenizer": "tokenizer.json"}, "tokenizer = 'tokenizer.json' is for large models"),
    ],
)
def test_what_a_model_of_ours_cannot_be_asked_is_refused(
    more: dict[str, Any], said: str, ours: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        main(settings_of("adapt", *words(ours, tmp_path / "run", **more)))


def test_attention_opens_in_training_over_the_steps_that_are_asked_for(ours: Path, tmp_path: Path) -> None:
    made = Adapt(settings_of("adapt", *words(ours, tmp_path / "run", opening_steps=2)))
    made.setup()
    batch = batches.training_batch(torch.zeros(8, 16, dtype=torch.int64), 0, torch.arange(8), 1, 8)
    seen = made.plan.stages(made.run.network)(batch)["attention"]
    assert 0 < seen.triu(1).sum() < 16 * 15 / 2
    main(settings_of("adapt", *words(ours, tmp_path / "run", opening_steps=2)))
    with pytest.raises(ValueError, match=r"cannot resume .* opening_steps was 2, is 3"):
        main(settings_of("adapt", *words(ours, tmp_path / "run", opening_steps=3)))
    with pytest.raises(ValueError, match="opening_steps = 5 must be at most steps = 4: attention opens in them"):
        main(settings_of("adapt", *words(ours, tmp_path / "run", opening_steps=5)))


def test_noise_levels_are_drawn_by_count_and_bytes_are_counted_by_token(ours: Path, tmp_path: Path) -> None:
    made = Adapt(settings_of("adapt", *words(ours, tmp_path / "run")))
    made.setup()
    batch = batches.training_batch(torch.zeros(8, 16, dtype=torch.int64), 0, torch.arange(8), 0, 8)
    out = made.plan.stages(made.run.network)(batch)
    masked = (out["x_t"] == made.plan.vocabulary.mask_id).sum(1)
    assert masked.tolist() == sorted(masked.tolist())
    torch.testing.assert_close(out["weight"], 16 / masked.double())
    spelled = SimpleNamespace(decode=lambda texts: ["\u00e9a", "ab", "abc"][: len(texts)])
    plan = made.plan._replace(vocabulary=spelled)
    assert plan.bytes_per_token(torch.zeros(3, 4), 2) == (3 + 2) / 8
    assert plan.bytes_per_token(torch.zeros(3, 4), 9) == (3 + 2 + 3) / 12


def test_a_run_remembers_what_it_began_with_and_how(ours: Path, tmp_path: Path) -> None:
    made = Adapt(settings_of("adapt", *words(ours, tmp_path / "run")))
    made.setup()
    how = {"objective": "nelbo", "time_conditioning": False, "length": 16, "shifted": False, "lora": None}
    told = {
        **how,
        "start_from": loading.weights_of(str(ours)),
        "schedule": {"_component_": "edlm.schedules.log_linear"},
    }
    assert told.items() <= made.run.identity.items()


def test_a_denoiser_of_ours_goes_on_elsewhere_and_the_line_says_where(ours: Path, tmp_path: Path) -> None:
    main(settings_of("adapt", *words(ours, tmp_path / "run")))
    said = "start_from = '.*run' holds a denoiser: `edlm run pretrain_denoiser start_from=.*run` trains it further$"
    with pytest.raises(ValueError, match=said):
        main(settings_of("adapt", *words(tmp_path / "run", tmp_path / "more")))


def test_shifted_of_a_run_is_as_the_model_is_where_nobody_says_it(ours: Path, tmp_path: Path) -> None:
    for name, start, wanted in (("ours", ours, False), ("large", hub_model(tmp_path / "hub"), True)):
        made = Adapt(settings_of("adapt", *words(start, tmp_path / name, shifted=None)))
        made.setup()
        assert made.run.identity["shifted"] is wanted


def test_a_start_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"start_from = .*nowhere: no checkpoint.*`edlm run pretrain_ar` trains one"):
        main(settings_of("adapt", *words(tmp_path / "nowhere", tmp_path / "run")))
    with pytest.raises(ValueError, match="parallel = 'sharded' must be 'data'"):
        main(settings_of("adapt", *words(hub_model(tmp_path / "hub"), tmp_path / "run", **LARGE, parallel="sharded")))
