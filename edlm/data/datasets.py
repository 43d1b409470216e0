"""Data sets by name, from the Hugging Face hub or from files of one's own, as documents in the splits of the papers.

A set is read document by document, tokenised once into a file, and cut into blocks when they are asked for. Loaded
files are only data: neither this library nor the versions of `datasets` it accepts run the hub's loading scripts.
"""

import difflib
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, get_args

from edlm.data import corpora, documents, layouts, token_cache
from edlm.data.catalogue import SETS, Part, Published
from edlm.data.columns import column_of
from edlm.data.detokenizers import Detokenizer
from edlm.data.documents import Unit
from edlm.data.layouts import Layout
from edlm.data.pieces import Blocks
from edlm.data.vocabulary import Vocabulary

Reader = Callable[[str], Iterator[str]]  # a split's documents, anew with every call

CACHE = "data/cache"  # where tokens are written, unless another folder is named
_RULES = 2  # raised when documents of the same files change
_SPLITS = ("train", "valid", "test")
_HUB_NAMES = {"train": "train", "valid": "validation", "test": "test"}
_FRACTIONS = (0.9, 0.05, 0.05)
_TEXT8 = 100_000_000  # characters
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set: a `corpora.Source` whose text need not fit into memory.

    read: gives a split's documents, anew with every call. zero_shot: the split of the published figures. same: maps a
    split to another one with the same documents, whose tokens serve both.
    """

    name: str
    read: Reader
    content: str
    zero_shot: str
    cache: Path
    layout: Layout
    wrapped: bool
    same: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Digits that differ when any block could: by what is read and how it is laid out."""
        return _digest(self.content, self.layout, str(self.wrapped))

    @cached_property
    def train(self) -> list[str]:
        """Documents of the training split."""
        return list(self.documents("train"))

    @cached_property
    def valid(self) -> list[str]:
        """Documents of the validation split."""
        return list(self.documents("valid"))

    @cached_property
    def test(self) -> list[str]:
        """Documents of the test split."""
        return list(self.documents("test"))

    def documents(self, split: str) -> Iterator[str]:
        """Read the documents of a split that hold any text, one at a time."""
        return (text for text in self.read(split) if text.strip())

    def blocks(self, vocabulary: Vocabulary, length: int) -> Blocks:
        """Cut every split into blocks, read from the token cache when indexed; a missing cache is written first.

        Raises ValueError as `token_cache.tokens` and `layouts.rows` do, and for a set that has not all three splits.
        """
        return Blocks(*(self._rows(self.same.get(name, name), vocabulary, length) for name in _SPLITS))

    def _rows(self, split: str, vocabulary: Vocabulary, length: int) -> layouts.TokenRows:
        folder = self.cache / f"{self.name}-{self.content}-{vocabulary.fingerprint}"
        try:
            tokens = token_cache.tokens(folder, split, lambda: self.documents(split), vocabulary)
            return layouts.rows(tokens, vocabulary, length, self.layout, self.wrapped, split)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


def named(
    name: str,
    path: str | Path | None = None,
    cache: str | Path = CACHE,
    layout: Layout = "packed",
    wrapped: bool = False,
    normalised: bool = False,
    streaming: bool = False,
) -> DataSet:
    """Load a data set of `SETS` by its name, as the papers read and split it.

    Args:
        name: a key of `SETS`.
        path: its files, in the format of the hub or of their first publication; None asks the hub, through `datasets`.
        cache: folder of the token files.
        layout: "packed" or "padded", see `layouts.rows`.
        wrapped: whether a block stands between a bos and an eos, see `layouts.rows`.
        normalised: whether documents are reduced to the 27 symbols of text8.
        streaming: whether the hub's files are read over the network, without a copy on disk, when tokens are written.

    Returns:
        The data set.

    Raises:
        ValueError: naming it, for an unknown name, and for data that is missing or not as expected.

    Example:
        >>> import edlm
        >>> edlm.datasets.named("text9")
        Traceback (most recent call last):
            ...
        ValueError: name = 'text9' is no data set; did you mean 'text8'?
    """
    if name not in SETS:
        near = difflib.get_close_matches(name, SETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(SETS)}"
        raise ValueError(f"name = {name!r} is no data set; {hint}")
    published = SETS[name]
    _require(path is None or not streaming, "streaming = True reads from the hub: leave path null")
    if path is None:
        stored, content = _on_hub(name, published, streaming)
    else:
        stored, content = _in_files(name, published, Path(path))
    read = partial(_cut_whole if published.whole else _part, name, published, stored)
    clean = published.detokenize or _unchanged
    cleaned = partial(_cleaned, read, clean, normalised)
    found = _data_set(name, cleaned, content, published.zero_shot, cache, layout, wrapped, normalised)
    return replace(found, same={"test": "valid"} if published.parts.get("valid") == published.parts.get("test") else {})


def files(
    path: str | Path,
    column: str = "text",
    documents_are: str = "paragraphs",
    cache: str | Path = CACHE,
    layout: Layout = "packed",
    wrapped: bool = False,
    normalised: bool = False,
    fractions: Sequence[float] = _FRACTIONS,
) -> DataSet:
    r"""Load text of one's own, a file or a folder of plain text, jsonl, CSV, TSV, parquet, arrow or zip, of any size.

    A file belongs to the split that its name or its folder's says: train, valid (validation, val, dev) or test. If no
    name says any, all documents are split in order by characters.

    Args:
        path: the file or folder.
        column: name of the text in all formats but plain text.
        documents_are: what a document of plain text is: "paragraphs" between blank lines, a "line", or the "file".
        cache: folder of the token files.
        layout: "packed" or "padded", see `layouts.rows`.
        wrapped: whether a block stands between a bos and an eos, see `layouts.rows`.
        normalised: whether documents are reduced to the 27 symbols of text8.
        fractions: shares of the three splits, where no name says any.

    Returns:
        The data set.

    Raises:
        ValueError: for data that is missing or not as expected.

    Example:
        >>> import edlm
        >>> from pathlib import Path
        >>> lines = [f'{{"body": "{word}"}}' for word in ("one", "two", "six", "ten")]
        >>> _ = Path("words.jsonl").write_text("\n".join(lines))
        >>> edlm.datasets.files("words.jsonl", column="body", fractions=(0.5, 0.25, 0.25)).train
        ['one', 'two']
    """
    _require(
        documents_are in ("paragraphs", "line", "file"),
        f"documents_are = {documents_are!r} must be paragraphs, line or file",
    )
    corpora.require_fractions(fractions)
    found = documents.find(path)
    unit: Unit = documents_are  # type: ignore[assignment]
    stored = partial(_of_split, found, (column,), unit)
    if set(found) == {""}:
        read: Reader = _ByFractions(partial(stored, ""), fractions, str(path))
    else:
        missing = [split for split in _SPLITS if split not in found]
        _require(
            not missing, f"{path}: has files for {', '.join(filter(None, found))} but none for {', '.join(missing)}"
        )
        unnamed = found.get("", [])
        _require(
            not unnamed,
            f"{path}: {unnamed[0].name if unnamed else ''} needs train, valid or test in its name, as other files have",
        )
        read = stored
    content = _digest(_content(Path(path), found), column, documents_are, repr(tuple(fractions)))
    cleaned = partial(_cleaned, read, _unchanged, normalised)
    return _data_set(Path(path).stem, cleaned, content, "test", cache, layout, wrapped, normalised)


def _data_set(
    name: str,
    read: Reader,
    content: str,
    zero_shot: str,
    cache: str | Path,
    layout: Layout,
    wrapped: bool,
    normalised: bool,
) -> DataSet:
    known = get_args(Layout)
    _require(layout in known, f"layout = {layout!r} must be one of {', '.join(known)}")
    key = _digest(content, str(_RULES), str(normalised))
    return DataSet(name, read, key, zero_shot, Path(cache), layout, wrapped)


def _part(name: str, published: Published, stored: Reader, split: str) -> Iterator[str]:
    """Read the documents of one of our splits out of the stored ones."""
    if split not in published.parts:
        raise ValueError(f"{name} has no {split} split; it has {', '.join(published.parts)}")
    return _sliced(stored(published.parts[split].stored), published.parts[split], name)


def _sliced(texts: Iterable[str], part: Part, name: str) -> Iterator[str]:
    if part.last:
        yield from deque(texts, maxlen=part.last)
        return
    waiting: deque[str] = deque()
    passed = 0
    for text in texts:
        waiting.append(text)
        if len(waiting) > part.all_but_last:
            passed += 1
            yield waiting.popleft()
    _require(
        passed > 0, f"{name}: {len(waiting)} documents leave none to train on beside the last {part.all_but_last:,}"
    )


def _cut_whole(name: str, published: Published, stored: Reader, split: str) -> Iterator[str]:
    """Read a split of one text, cut 90/5/5 by characters, however many splits it is stored in."""
    text = "".join(stored("train"))
    if len(text) != _TEXT8:  # else it is all there
        text += "".join(chain.from_iterable(stored(other) for other in published.parts if other != "train"))
    return iter(getattr(corpora.cut(text, _FRACTIONS, name), split))


@dataclass(frozen=True, eq=False)
class _ByFractions:
    """Documents in order, split by fractions of their characters, which are counted first."""

    texts: Callable[[], Iterator[str]]
    fractions: Sequence[float]
    source: str

    @cached_property
    def places(self) -> tuple[int, int, int]:
        sizes = [len(text) for text in self.texts() if text.strip()]
        _require(len(sizes) >= 3, f"{self.source}: {len(sizes)} documents are too few to be split in three")
        return *corpora.split_places(sizes, self.fractions), len(sizes)

    def __call__(self, split: str) -> Iterator[str]:
        first, second, count = self.places
        start, end = {"train": (0, first), "valid": (first, second), "test": (second, count)}[split]
        return islice((text for text in self.texts() if text.strip()), start, end)


def _cleaned(read: Reader, clean: Detokenizer, normalised: bool, split: str) -> Iterator[str]:
    cleaned = (clean(text) for text in read(split) if text.strip())
    return map(corpora.normalise, cleaned) if normalised else cleaned


def _unchanged(text: str) -> str:
    return text


def _in_files(name: str, published: Published, path: Path) -> tuple[Reader, str]:
    """Find the reader of a set's own files by stored split, and the hash of their content."""
    own = path / (published.folder or published.config or "")
    path = own if own.is_dir() else path  # a copy of the repository, with other sets beside this one
    found = documents.find(path)
    found = {
        split: [file for file in inside if not file.name.startswith(published.beside)]
        for split, inside in found.items()
    }
    return partial(_stored, name, published, path, found), _digest(name, _content(path, found))


def _stored(
    name: str,
    published: Published,
    path: Path,
    found: Mapping[str, Sequence[Path]],
    split: str,
) -> Iterator[str]:
    wanted = {"train"} if published.whole else {part.stored for part in published.parts.values()}
    unnamed = found.get("", []) if wanted == {split} else []  # a set of one stored split need not name it
    inside = found.get(split, unnamed)
    optional = published.whole and split not in wanted
    _require(bool(inside) or optional, f"{path}: no file of {name} says {split} in its name or its folder's")
    return _of_files(inside, published.columns, published.unit)


def _of_split(found: Mapping[str, Sequence[Path]], columns: tuple[str, ...], unit: Unit, split: str) -> Iterator[str]:
    return _of_files(found.get(split, []), columns, unit)


def _of_files(inside: Sequence[Path], columns: tuple[str, ...], unit: Unit) -> Iterator[str]:
    return chain.from_iterable(documents.read(file, columns, unit) for file in inside)


def _on_hub(name: str, published: Published, streaming: bool) -> tuple[Reader, str]:
    """Find the reader of the hub's files by stored split, and their revision."""
    hub = _hub()
    builder = _asked(name, published, lambda: hub.load_dataset_builder(published.repository, **_where(published)))
    read = partial(_from_hub, name, published, streaming)
    return read, _digest(name, published.repository, str(builder.hash))


def _from_hub(name: str, published: Published, streaming: bool, split: str) -> Iterator[str]:
    asked = {**_where(published), "split": _HUB_NAMES[split], "streaming": streaming}
    hub = _hub()
    rows = _asked(name, published, lambda: hub.load_dataset(published.repository, **asked))
    names = list(rows.features or next(iter(rows)))
    column = column_of(names, published.columns, f"{name}: {published.repository}")
    for batch in rows.select_columns([column]).iter(_ROWS_AT_ONCE):
        yield from documents.texts(batch[column], f"{name}: {published.repository}")


def _where(published: Published) -> dict[str, Any]:
    return {"name": published.config, "data_dir": published.folder, "revision": published.revision}


def _hub() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError("data sets by name come through `datasets`: pip install 'edlm-torch[data]'") from error
    return datasets


def _asked(name: str, published: Published, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as error:  # of the network, of the hub, of a format: each has its own
        reason = str(error).strip().partition("\n")[0]
        message = f"{name}: the hub does not give {published.repository} ({reason}); name its files by path"
        raise ValueError(message) from error


def _content(path: Path, found: Mapping[str, Sequence[Path]]) -> str:
    """Hash all that files hold, with the split and the name of each."""
    digest = hashlib.sha256()
    for split, inside in sorted(found.items()):
        for file in inside:
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, "sha256").hexdigest()
            digest.update(f"{split} {file.relative_to(path) if path.is_dir() else file.name} {content}\n".encode())
    return digest.hexdigest()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
