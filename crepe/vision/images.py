"""Labelled pictures by name: an image folder, a parquet file, or a Hub data set. Decoded one by one, when asked."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crepe.errors import CrepeError, UsageError
from crepe.progress import bar
from crepe.vision.preprocess import Preprocessor, rgb

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm")
_LABELS = ("label", "labels", "fine_label")
_IMAGES = ("image", "img")
# Pixel values of all pictures are kept up to this size: 50,000 of 32 x 32 are 0.6 GB, 1,700 of 224 x 224 are 1 GB.
_MOST_KEPT_BYTES = 1 << 30
_DECODED_AT_ONCE = 1024
# Of a Hub data set, the split to calibrate and train on, and those to measure on, the first that exists.
_SPLITS = {"calibration": ("train",), "evaluation": ("test", "validation", "valid", "val")}


@dataclass(frozen=True)
class Images:
    """Pictures and labels. pictures: what `decode` understands; labels: one number each, empty where there are none;
    names: how an error calls each picture; unknown: folders whose names are no classes of the model, so that all were
    numbered by the alphabet; known: how many folders have the names of classes."""

    source: str
    pictures: Sequence[Any]
    labels: tuple[int, ...]
    names: Callable[[int], str]
    decode: Callable[[Any], Any]
    unknown: tuple[str, ...] = ()
    known: int = 0

    def __len__(self) -> int:
        return len(self.pictures)

    def picture(self, index: int) -> Any:
        """One picture as RGB. Raises CrepeError naming the one that cannot be read."""
        try:
            return rgb(self.decode(self.pictures[index]))
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CrepeError(
                f"cannot read the image {self.names(index)}: {reason[0]}; replace it or take it out"
            ) from error

    def subset(self, indices: Sequence[int]) -> Images:
        labels = tuple(self.labels[i] for i in indices) if self.labels else ()
        chosen = list(indices)
        pictures = _Chosen(self.pictures, chosen)
        return replace(self, pictures=pictures, labels=labels, names=lambda i: self.names(chosen[i]))


class _Chosen(Sequence[Any]):
    """Some pictures of many, fetched when asked for: a Hub data set decodes what it hands out."""

    def __init__(self, pictures: Sequence[Any], indices: Sequence[int]) -> None:
        self._pictures, self._indices = pictures, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        return self._pictures[self._indices[index]]


def read_images(source: str, purpose: str = "evaluation", label_ids: Mapping[str, int] | None = None) -> Images:
    """The pictures of `source`; purpose, `calibration` or `evaluation`, chooses the split of a Hub data set.

    label_ids: class name -> number, for folders whose class names the model knows.

    Raises:
        UsageError: neither a folder, a file nor a Hub id. CrepeError: unreadable or empty.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(source, path, label_ids or {})
    if path.suffix == ".parquet":
        return _parquet(source, path)
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return _hub(source, purpose)
    raise UsageError(f"unknown images {source!r}: give an image folder, a .parquet file, or a Hub id owner/name")


def require_labels(images: Images, classes: int, what: str) -> None:
    """Raises CrepeError where there are no labels, labels that the model has no class for, or folders of which the
    alphabet cannot say which is which class."""
    if not images.labels:
        raise CrepeError(f"{images.source} has no labels, and {what} needs them: give labelled images")
    if images.unknown:
        _require_order(images, classes)
    low, high = min(images.labels), max(images.labels)
    if low < 0 or high >= classes:
        raise CrepeError(
            f"{images.source} has label {high if high >= classes else low}, the model has {classes} classes "
            f"(0..{classes - 1}): give the data set that the model was trained for"
        )


def _require_order(images: Images, classes: int) -> None:
    """Raises CrepeError where folders with names that the model does not know cannot be numbered by the alphabet."""
    source, unknown = images.source, images.unknown
    if images.known:
        raise CrepeError(f"{source} has the folder {unknown[0]!r}, which is no class of the model: rename it")
    if len(unknown) != classes:
        raise CrepeError(
            f"{source} has {len(unknown)} folders with names that the model does not know, and the model has {classes} "
            "classes: give one folder for each, in alphabetical order"
        )
    if all(name.isdigit() for name in unknown) and len({len(name) for name in unknown}) > 1:
        raise CrepeError(
            f"the folders of {source} are numbers whose order is not that of the alphabet: name them so that it is the "
            "order of the model's classes (02 for 2, say), or give a .parquet file with labels"
        )


def chosen(images: Images, count: int, seed: int) -> Images:
    """At most `count` pictures, in an order chosen by seed: sources often come class by class, and a batch, or the
    first few pictures, should hold every class."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return images.subset(order.tolist())


def parts(count: int, size: int) -> list[range]:
    """Consecutive numbers below `count`, `size` at a time; one that would be left alone joins those before it, because
    a batch norm cannot be trained on one value."""
    starts = list(range(0, count, size))
    if size > 1 and len(starts) > 1 and starts[-1] == count - 1:
        starts.pop()
    return [range(start, end) for start, end in zip(starts, [*starts[1:], count], strict=False)]


def batches(images: Images, preprocess: Preprocessor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(pixel values, labels) of `parts` of the pictures; labels are empty where there are none."""
    for indices in parts(len(images), size):
        labels = [images.labels[i] for i in indices] if images.labels else []
        yield pixels(images, preprocess, indices), torch.tensor(labels, dtype=torch.long)


def pixels(images: Images, preprocess: Preprocessor, indices: Sequence[int]) -> Tensor:
    return preprocess([images.picture(i) for i in indices])


@dataclass(frozen=True)
class Pixels:
    """Pixel values of pictures by their numbers, and the labels."""

    read: Callable[[Sequence[int]], Tensor]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(pixel values, labels on the CPU)"""
        return self.read(indices), torch.tensor([self.labels[i] for i in indices])


def readable(images: Images, preprocess: Preprocessor, device: torch.device) -> Pixels:
    """Labelled pictures as pixel values on `device`. Where those of all together are small they are decoded once and
    kept there: an epoch of small pictures would else be spent on decoding them again."""
    first = pixels(images, preprocess, [0])
    if first.nbytes * len(images) > _MOST_KEPT_BYTES:
        return Pixels(lambda indices: pixels(images, preprocess, indices).to(device), images.labels)
    kept = torch.empty(len(images), *first.shape[1:], dtype=first.dtype, device=device)
    chunks = parts(len(images), _DECODED_AT_ONCE)
    with bar("reading images", len(chunks)) as advance:
        for part in chunks:
            kept[part.start : part.stop] = pixels(images, preprocess, part).to(device)
            advance()
    return Pixels(lambda indices: kept[torch.tensor(list(indices), device=device)], images.labels)


def digest(values: Tensor) -> str:
    """sha256 of pixel values, so that two runs can be compared."""
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()


def _folder(source: str, path: Path, label_ids: Mapping[str, int]) -> Images:
    """Sub-folders are classes, in alphabetical order unless the model knows their names; hidden ones are none.

    Raises:
        CrepeError: no images, or images beside the classes.
    """
    from PIL import Image

    classes = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS)
    files = [p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    stray = next((p for p in files if classes and p.parent == path), None)
    if stray is not None:
        raise CrepeError(f"{stray} lies beside the folders of the classes: move it into one of them, or take it out")
    unknown = [name for name in classes if name not in label_ids]
    if not files:
        raise CrepeError(f"{source} holds no images: expected one folder per class with {', '.join(ENDINGS)} files")
    numbers = {name: i if unknown else label_ids[name] for i, name in enumerate(classes)}
    labels = tuple(numbers[file.relative_to(path).parts[0]] for file in files) if classes else ()
    known = len(classes) - len(unknown)
    return Images(source, files, labels, lambda i: str(files[i]), Image.open, tuple(unknown), known)


def _parquet(source: str, path: Path) -> Images:
    import pyarrow.parquet as parquet

    if not path.is_file():
        raise CrepeError(f"no image file at {source!r}: check the path")
    try:
        table = parquet.read_table(path)
    except Exception as error:
        raise CrepeError(f"cannot read images from {source}: {str(error).splitlines()[0]}") from error
    image = _column(table.column_names, _IMAGES, source, "image")
    label = next((name for name in _LABELS if name in table.column_names), None)
    rows = table.column(image).to_pylist()
    labels = _numbers(table.column(label).to_pylist(), source) if label else ()
    if not rows:
        raise CrepeError(f"{source} holds no images: give a file with rows in it")
    return Images(source, rows, labels, lambda i: f"in row {i} of {source}", _from_bytes)


def _numbers(values: Sequence[Any], source: str) -> tuple[int, ...]:
    for row, value in enumerate(values):
        if not isinstance(value, int):
            raise CrepeError(f"the label in row {row} of {source} is {value!r}: expected the number of a class")
    return tuple(values)


def _from_bytes(cell: Any) -> Any:
    from PIL import Image

    content = cell["bytes"] if isinstance(cell, dict) else cell
    return Image.open(io.BytesIO(content))


def _hub(source: str, purpose: str) -> Images:
    import datasets

    try:
        splits = datasets.get_dataset_split_names(source)
        split = next((name for name in _SPLITS[purpose] if name in splits), splits[0])
        table = datasets.load_dataset(source, split=split)
    except Exception as error:
        raise CrepeError(
            f"cannot load data set {source!r}: {type(error).__name__}; check the name and the network, or give a file"
        ) from error
    image = _column(table.column_names, _IMAGES, source, "image")
    label = next((name for name in _LABELS if name in table.column_names), None)
    labels = tuple(table[label]) if label else ()
    return Images(source, table, labels, lambda i: f"{i} of {source}", lambda row: row[image])


def _column(columns: Sequence[str], names: Sequence[str], source: str, what: str) -> str:
    for name in names:
        if name in columns:
            return name
    raise CrepeError(f"{source} has no {what} column: expected {' or '.join(names)}, found {', '.join(columns)}")
