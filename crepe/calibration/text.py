"""Texts by name: a file, a Hub data set, `wikitext2` or `c4`. Yields documents; tokens are made elsewhere."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crepe.errors import CrepeError, UsageError

FILE_ENDINGS = (".txt", ".jsonl", ".json", ".parquet")
_COLUMNS = ("text", "content", "page", "document", "article")
# One long .txt file is cut into pieces of about this many characters, so that a seeded choice covers all of it.
_PIECE = 20_000


@dataclass(frozen=True)
class Corpus:
    """Where documents come from, and a digest of the file (None for what comes from the Hub)."""

    name: str
    documents: list[str]
    digest: str | None


# name -> (repository, configuration, split for calibration, split for evaluation)
_KNOWN = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "train", "test"),
    "c4": ("allenai/c4", "en", "train", "validation"),
}
# Of a streamed Hub data set only so many documents are read.
_STREAMED = 4096


def read_corpus(source: str, purpose: str = "calibration") -> Corpus:
    """Documents of `source`; purpose is `calibration` or `evaluation` and chooses the split of a Hub data set.

    Raises:
        UsageError: not a file, not a known name and not a Hub id. CrepeError: unreadable, empty, or no network.
    """
    path = Path(source).expanduser()
    if path.is_file() or path.suffix in FILE_ENDINGS:
        return _read_file(source, path)
    if source in _KNOWN or (source.count("/") == 1 and not source.startswith((".", "/", "~"))):
        return Corpus(source, _read_hub(source, purpose), None)
    choices = ", ".join(["self", *_KNOWN])
    raise UsageError(
        f"unknown text {source!r}: give {choices}, a .txt, .jsonl or .parquet file, or a Hub id owner/name"
    )


def shuffled(corpus: Corpus, seed: int) -> list[str]:
    documents = [piece for document in corpus.documents for piece in _pieces(document)]
    random.Random(seed).shuffle(documents)
    return documents


def _pieces(document: str) -> Iterator[str]:
    """Cut a long document at line ends."""
    if len(document) <= 2 * _PIECE:
        yield document
        return
    size, piece = 0, []
    for line in document.splitlines(keepends=True):
        piece.append(line)
        size += len(line)
        if size >= _PIECE:
            yield "".join(piece)
            size, piece = 0, []
    if piece:
        yield "".join(piece)


def _read_file(source: str, path: Path) -> Corpus:
    if not path.is_file():
        raise CrepeError(f"no text file at {source!r}: check the path")
    try:
        documents = [path.read_text(encoding="utf-8")] if path.suffix == ".txt" else _read_table(path)
    except CrepeError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CrepeError(f"cannot read text from {source}: {reason[0]}") from error
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise CrepeError(f"{source} holds no text: give a file with documents in it")
    return Corpus(source, documents, hashlib.sha256(path.read_bytes()).hexdigest())


def _read_table(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        table = parquet.read_table(path)
        return [str(x) for x in table.column(_text_column(table.column_names, str(path))).to_pylist() if x]
    import json

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not rows:
        return []
    column = _text_column(list(rows[0]), str(path))
    return [str(row[column]) for row in rows if row.get(column)]


def _text_column(columns: list[str], source: str) -> str:
    for name in _COLUMNS:
        if name in columns:
            return name
    raise CrepeError(f"{source} has no text column: expected one of {', '.join(_COLUMNS)}, found {', '.join(columns)}")


def _read_hub(source: str, purpose: str) -> list[str]:
    import datasets

    repository, configuration, calibration, evaluation = _KNOWN.get(source, (source, None, "train", "test"))
    split = calibration if purpose == "calibration" else evaluation
    try:
        stream = datasets.load_dataset(repository, configuration, split=split, streaming=source != "wikitext2")
        rows: list[dict[str, Any]] = list(itertools.islice(stream, _STREAMED if source != "wikitext2" else None))
    except Exception as error:
        raise CrepeError(
            f"cannot load data set {source!r} ({repository}, split {split}): {type(error).__name__}; "
            "check the name and the network, or give a local file, or use 'self'"
        ) from error
    column = _text_column(list(rows[0]), source) if rows else ""
    texts = [str(row[column]) for row in rows if row[column]]
    # WikiText comes as lines; papers join them into one text.
    return ["\n\n".join(texts)] if source == "wikitext2" else texts
