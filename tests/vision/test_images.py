"""Pictures of every mode and size, from folders and tables; what cannot be read is named."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from crepe.errors import CrepeError, UsageError
from crepe.vision import images as module
from crepe.vision.images import Images, batches, chosen, parts, read_images, readable, require_labels
from image_data import STEPS, parquet, picture


def _folder(path: Path) -> Path:
    for index, (name, mode, size) in enumerate(
        [("cat", "L", (40, 30)), ("cat", "RGBA", (8, 8)), ("dog", "P", (32, 32))]
    ):
        (path / name).mkdir(parents=True, exist_ok=True)
        picture(index, mode, size).save(path / name / f"{index}.png")
    return path


def test_a_folder_has_a_class_for_each_sub_folder(tmp_path: Path) -> None:
    images = read_images(str(_folder(tmp_path / "data")))
    assert images.labels == (0, 0, 1) and len(images) == 3
    ((pixels, labels),) = batches(images, STEPS, 8)
    assert pixels.shape == (3, 3, 32, 32) and labels.tolist() == [0, 0, 1]


def test_a_folder_takes_the_numbers_of_the_classes_that_the_model_knows(tmp_path: Path) -> None:
    assert read_images(str(_folder(tmp_path / "data")), label_ids={"dog": 3, "cat": 7}).labels == (7, 7, 3)


def test_small_pictures_are_decoded_once_and_read_as_large_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, decoded = read_images(str(_folder(tmp_path / "data"))), []
    counting = Images(
        found.source, found.pictures, found.labels, found.names, lambda p: decoded.append(p) or Image.open(p)
    )
    kept = readable(counting, STEPS, torch.device("cpu"))
    after = len(decoded)
    first, again = kept.batch([2, 0]), kept.batch([2, 0])
    assert len(decoded) == after and first[1].tolist() == [1, 0]
    monkeypatch.setattr(module, "_MOST_KEPT_BYTES", 0)
    large = readable(counting, STEPS, torch.device("cpu"))
    assert torch.equal(large.batch([2, 0])[0], first[0]) and torch.equal(first[0], again[0])
    assert len(decoded) == after + 3


def test_a_corrupt_file_is_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "data")
    (folder / "dog" / "9.png").write_bytes(b"no picture")
    with pytest.raises(CrepeError, match=r"cannot read the image .*dog/9\.png"):
        list(batches(read_images(str(folder)), STEPS, 8))


def test_a_table_keeps_the_order_of_its_rows(tmp_path: Path) -> None:
    images = read_images(parquet(tmp_path / "a.parquet", 7))
    assert images.labels == (0, 1, 2, 3, 4, 0, 1)
    assert images.picture(3).tobytes() == picture(3).tobytes()
    assert images.subset([5, 2]).labels == (0, 2) and images.subset([5, 2]).names(1) == images.names(2)


def test_a_choice_depends_on_the_seed_alone(tmp_path: Path) -> None:
    images = read_images(parquet(tmp_path / "a.parquet", 40))
    first, again, other = (list(chosen(images, 10, seed).pictures) for seed in (0, 0, 1))
    assert first == again != other and len(chosen(images, 99, 0)) == 40


def test_what_comes_class_by_class_is_mixed(tmp_path: Path) -> None:
    for index in range(40):
        (tmp_path / f"c{index // 10}").mkdir(exist_ok=True)
        picture(index).save(tmp_path / f"c{index // 10}" / f"{index}.png")
    for count in (20, 40):
        assert len(set(chosen(read_images(str(tmp_path)), count, 0).labels[:10])) > 1


@given(st.integers(0, 50), st.integers(1, 9))
def test_parts_hold_every_number_once_and_none_is_alone(count: int, size: int) -> None:
    found = parts(count, size)
    assert [i for part in found for i in part] == list(range(count))
    assert all(len(part) == size for part in found[:-1]) and all(len(part) <= size + 1 for part in found)
    assert min(count, size) < 2 or all(len(part) > 1 for part in found)


def test_grey_of_sixteen_bits_keeps_its_shades(tmp_path: Path) -> None:
    ramp = numpy.arange(0, 65536, 64, dtype=numpy.uint16).reshape(32, 32)
    (tmp_path / "a").mkdir()
    Image.fromarray(ramp).save(tmp_path / "a" / "ramp.png")
    found = numpy.asarray(read_images(str(tmp_path)).picture(0))[:, :, 0]
    assert (found == ramp // 256).all()


def test_pictures_outside_of_classes(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "data")
    (folder / ".hidden").mkdir()
    picture(0).save(folder / ".hidden" / "x.png")
    assert len(read_images(str(folder))) == 3
    picture(0).save(folder / "stray.png")
    with pytest.raises(CrepeError, match=r"stray\.png lies beside the folders of the classes"):
        read_images(str(folder))


def test_a_class_that_the_model_does_not_know_is_named(tmp_path: Path) -> None:
    images = read_images(str(_folder(tmp_path / "data")), label_ids={"dog": 3, "mouse": 7})
    assert len(list(batches(images, STEPS, 8))) == 1  # where no labels are needed nothing is wrong
    with pytest.raises(CrepeError, match="folder 'cat', which is no class of the model"):
        require_labels(images, 8, "accuracy")


def test_folders_that_are_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    for names, right in ((("1", "2", "10"), False), (("01", "02", "10"), True)):
        for name in names:
            (tmp_path / str(right) / name).mkdir(parents=True)
            picture(0).save(tmp_path / str(right) / name / "x.png")
    require_labels(read_images(str(tmp_path / "True")), 3, "accuracy")
    with pytest.raises(CrepeError, match="numbers whose order is not that of the alphabet"):
        require_labels(read_images(str(tmp_path / "False")), 3, "accuracy")


def test_folders_of_unknown_names_are_as_many_as_classes(tmp_path: Path) -> None:
    """Of eight of ten folders the alphabet cannot say which number is whose."""
    images = read_images(str(_folder(tmp_path / "data")))
    require_labels(images, 2, "accuracy")
    for classes in (1, 3):
        with pytest.raises(CrepeError, match=rf"has 2 folders with names .* and the model has {classes} classes"):
            require_labels(images.subset([0, 1]), classes, "accuracy")
    require_labels(read_images(str(_folder(tmp_path / "data")), label_ids={"dog": 3, "cat": 7}), 10, "accuracy")


def test_labels_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(parquet(tmp_path / "a.parquet", 3))
    column = table.column_names.index("label")
    for labels, row, value in ((["cat", "dog", "cat"], 0, "'cat'"), ([0, None, 1], 1, "None")):
        table = table.set_column(column, "label", pyarrow.array(labels))
        pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
        with pytest.raises(
            CrepeError, match=rf"the label in row {row} of .* is {value}: expected the number of a class"
        ):
            read_images(str(tmp_path / "b.parquet"))


def test_labels_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    images = read_images(parquet(tmp_path / "a.parquet", 7))
    with pytest.raises(CrepeError, match=r"has label 4, the model has 3 classes \(0..2\)"):
        require_labels(images, 3, "accuracy")
    with pytest.raises(CrepeError, match="has no labels, and accuracy needs them"):
        require_labels(read_images(parquet(tmp_path / "b.parquet", 3, labels=False)), 3, "accuracy")


@pytest.mark.parametrize(("source", "message"), [("nothing.parquet", "no image file"), ("word", "unknown images")])
def test_sources_that_are_none(source: str, message: str) -> None:
    with pytest.raises((CrepeError, UsageError), match=message):
        read_images(source)


def test_an_empty_folder_and_a_table_without_images(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "empty").mkdir()
    with pytest.raises(CrepeError, match="holds no images"):
        read_images(str(tmp_path / "empty"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(CrepeError, match="no image column: expected image or img, found text"):
        read_images(str(tmp_path / "t.parquet"))


def test_pixels_are_scaled_and_normalised() -> None:
    image = picture(0, size=(32, 32))
    red = torch.tensor(image.getpixel((0, 0)), dtype=torch.float32) / 255
    assert torch.allclose(STEPS([image])[0, :, 0, 0], (red - 0.5) / 0.25, atol=1e-6)
