"""Large AR models as a config names them: a folder of the hub, or a builder of torchtune and what reads its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edlm.nn import decoders
from edlm.nn.decoders import Blueprint, DecoderNetwork, Readable
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.weights import large, shards, whole

SECTION: Schema = {
    "model": schemas.component(),
    "checkpointer": schemas.component("output_dir"),
}
AR = schemas.optional(schemas.either(schemas.text, schemas.section(SECTION)))  # what `ar` of a config may be

LONGEST = 2048  # tokens of a large model, where a config names no length

Source = str | Mapping[str, Any]


class How(NamedTuple):
    """The reading of a large AR model.

    length: of the longest text; rows: how many are run at a time, None: all; dtype: of its weights, None: that of its
    files; tokenizer: another one than its folder's; output: where a checkpointer would write, which it wants to know,
    None: beside its files.
    """

    length: int | None = None
    rows: int | None = None
    dtype: torch.dtype | None = None
    tokenizer: str | None = None
    output: str | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return self.length or LONGEST


PLAIN = How()


def folder_of(source: Source) -> Path:
    """Find the folder of a large model: the one that is named, a run's newest checkpoint, or that of a checkpointer."""
    if isinstance(source, str):
        return large.hub_folder(source) or Path(source)
    return Path(source["checkpointer"]["checkpoint_dir"])


def said(source: Source) -> str:
    """Name a model in a message: as the config does, or by the folder of its checkpointer."""
    return repr(source if isinstance(source, str) else str(folder_of(source)))


def files_of(source: Source) -> list[Path]:
    """List the files of a large model's weights."""
    folder = folder_of(source)
    named = None if isinstance(source, str) else source["checkpointer"].get("checkpoint_files")
    return [folder / str(name) for name in named] if isinstance(named, list) else list(shards.files(folder))


def read(source: Source, how: How, vocab_size: int | None = None) -> Readable:
    """Read a folder of the hub, or what a section's builder makes and its checkpointer reads.

    Args:
        source: the folder, or the section.
        how: the longest text and rows at a time; where a checkpointer would write.
        vocab_size: that of a denoiser, where it is larger.

    Returns:
        The model before it takes memory.

    Raises:
        ValueError: as `large.read_autoregressive` does, and naming the checkpointer that cannot read its files.
    """
    folder = folder_of(source)
    if isinstance(source, str):
        return large.read_autoregressive(folder, how.longest, how.rows, vocab_size)

    def as_energy(decoder: Any) -> DecoderNetwork:
        return decoders.autoregressive(decoder, how.longest, how.rows, vocab_size)

    def weights() -> Mapping[str, Tensor]:
        output = str(folder.parent) if how.output is None else how.output
        try:
            checkpointer = schemas.build(source["checkpointer"], output_dir=output)
            found: Mapping[str, Tensor] = checkpointer.load_checkpoint()["model"]
        except ValueError as error:
            raise ValueError(f"ar.checkpointer: {error}") from error
        except (KeyError, OSError, AssertionError) as error:
            raise ValueError(f"ar.checkpointer: {type(error).__name__}: {error}") from error
        return found

    return Blueprint(lambda: schemas.build(source["model"]), weights, as_energy, "ar", large.dtype_of(folder))


def output_of(settings: Mapping[str, Any]) -> str | None:
    """Give the folder in which a recipe writes, None if its settings name none."""
    file = settings.get("output")
    return settings.get("output_dir", None if file is None else str(Path(file).parent))


def special_ids(source: Source) -> dict[str, int | None]:
    """Read the ids that a large model's config gives to bos and eos; None where it names none, or is missing."""
    folder = folder_of(source)
    config = whole.read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return {f"{name}_id": large.special_id(folder, config, name) for name in ("bos", "eos")}
