"""Texts, rows, sums: seeded choice, full rows, BOS, bad files, any batch size."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import crepe
from conftest import TEXT, save_tokenizer
from crepe.calibration import self_text
from crepe.calibration.self_text import cache_bytes, self_rows
from crepe.calibration.statistics import ChannelSums, channel_square_sum, fill_unseen_experts
from crepe.calibration.text import read_corpus, shuffled
from crepe.calibration.tokens import bos_tokens, packed_rows, windows
from crepe.errors import CrepeError, UsageError
from families import tiny_model

DOCUMENTS = [f"document {i}: {TEXT[: 50 + i]}" for i in range(30)]


def _write(folder: Path, kind: str) -> Path:
    path = folder / f"data.{kind}"
    if kind == "txt":
        path.write_text("\n\n".join(DOCUMENTS))
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({"id": i, "text": d}) for i, d in enumerate(DOCUMENTS)))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": DOCUMENTS}), path)
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_every_file_kind_gives_the_same_text(tmp_path: Path, kind: str) -> None:
    corpus = read_corpus(str(_write(tmp_path, kind)))
    assert "\n\n".join(corpus.documents) == "\n\n".join(DOCUMENTS)
    assert len(corpus.digest or "") == 64


@pytest.mark.parametrize("bos", [False, True])
def test_rows_are_full_seeded_and_begin_as_the_tokenizer_begins(tmp_path: Path, bos: bool) -> None:
    tokenizer = _tokenizer(tmp_path, bos)
    corpus = read_corpus(str(_write(tmp_path, "jsonl")))
    rows = packed_rows(tokenizer, corpus, 5, 32, seed=1)
    assert rows.shape == (5, 32) and rows.dtype == torch.long
    assert bool((rows[:, 0] == 1).all()) == bos
    assert torch.equal(rows, packed_rows(tokenizer, corpus, 5, 32, seed=1))
    assert not torch.equal(rows, packed_rows(tokenizer, corpus, 5, 32, seed=2))
    assert 0 not in rows


@pytest.mark.parametrize("bos", [False, True])
def test_windows_do_not_overlap(tmp_path: Path, bos: bool) -> None:
    tokenizer = _tokenizer(tmp_path, bos)
    corpus = read_corpus(str(_write(tmp_path, "txt")))
    found = windows(tokenizer, corpus, 32)
    text = "\n\n".join(DOCUMENTS)
    body = found[:, 1:] if bos else found
    assert tokenizer.decode(body.reshape(-1)) == text[: body.numel()]
    assert len(found) == len(text) // (31 if bos else 32)
    assert bos_tokens(tokenizer) == ([1] if bos else [])
    assert len(windows(tokenizer, corpus, 32, limit=2)) == 2


def _tokenizer(folder: Path, bos: bool) -> Any:
    tokenizer = save_tokenizer(folder)
    if bos:
        from tokenizers.processors import TemplateProcessing

        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def test_a_long_text_is_cut_into_pieces_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    lines = [f"line {i} of a long text\n" for i in range(5000)]
    path.write_text("".join(lines))
    pieces = shuffled(read_corpus(str(path)), seed=0)
    assert len(pieces) > 3
    assert sorted("".join(pieces).splitlines()) == sorted("".join(lines).splitlines())


def test_bad_texts_are_named(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "columns.jsonl").write_text('{"label": 1}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": \n')
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(CrepeError, match=r"empty.txt holds no text"):
        read_corpus(str(tmp_path / "empty.txt"))
    with pytest.raises(CrepeError, match=r"gives 0 rows of 32 tokens, 4 are asked for"):
        packed_rows(tokenizer, read_corpus(str(tmp_path / "short.txt")), 4, 32, 0)
    with pytest.raises(CrepeError, match=r"one window needs 64"):
        windows(tokenizer, read_corpus(str(tmp_path / "short.txt")), 64)
    with pytest.raises(CrepeError, match=r"columns.jsonl has no text column.*found label"):
        read_corpus(str(tmp_path / "columns.jsonl"))
    for name in ("broken.jsonl", "broken.parquet"):
        with pytest.raises(CrepeError, match=f"cannot read text from .*{name}"):
            read_corpus(str(tmp_path / name))
    with pytest.raises(CrepeError, match="no text file"):
        read_corpus(str(tmp_path / "absent.txt"))
    with pytest.raises(UsageError, match="unknown text 'wikitxt'"):
        read_corpus("wikitxt")


@pytest.mark.parametrize("name", ["wikitext2", "c4", "owner/name"])
def test_no_network_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(CrepeError, match=rf"cannot load data set '{name}'.*local file"):
        read_corpus(name)


def test_hub_data_sets_join_wikitext_and_stream_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(repository: str, configuration: str | None, split: str, streaming: bool) -> list[dict[str, str]]:
        asked.append((repository, configuration, split, streaming))
        return [{"text": "one"}, {"text": ""}, {"text": "two"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_corpus("wikitext2", "evaluation").documents == ["one\n\ntwo"]
    assert read_corpus("c4").documents == ["one", "two"]
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", "test", False), ("allenai/c4", "en", "train", True)]


def test_sums_do_not_depend_on_the_batch() -> None:
    inputs = torch.randn(6, 10, 16, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    whole = channel_square_sum(inputs)
    parts = sum(channel_square_sum(part) for part in inputs.split(2))
    assert whole.dtype == torch.float64
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=0)
    torch.testing.assert_close(whole, inputs.double().square().sum((0, 1)), rtol=1e-6, atol=0)


def test_gram_and_mean_add_up_over_batches_and_follow_an_order() -> None:
    inputs = torch.randn(6, 10, 16, generator=torch.Generator().manual_seed(0)) + 0.5
    needs = {"gram", "mean"}
    sums = ChannelSums.empty(16, needs=needs)
    for part in inputs.split(4):
        sums.add(ChannelSums.of(part, needs))
    tokens = inputs.double().reshape(-1, 16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    for columns in (torch.arange(16), order):
        seen, found = tokens[:, columns], sums.statistics()
        torch.testing.assert_close(found["gram"].double(), seen.T @ seen, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(found["mean"].double(), seen.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["norm"].double(), seen.norm(dim=0), rtol=1e-5, atol=1e-5)
        assert float(found["tokens"]) == 60
        sums.reorder(order)


def test_unseen_experts_have_gram_and_mean_of_their_layer() -> None:
    needs = {"gram", "mean"}
    seen = [ChannelSums.of(torch.full((tokens, 2), 2.0), needs) for tokens in (2, 4)]
    filled = fill_unseen_experts([*seen, ChannelSums.empty(2, needs=needs)])[2].statistics()
    assert filled["mean"].tolist() == [2.0, 2.0] and filled["gram"].tolist() == [[12.0] * 2] * 2
    nothing = fill_unseen_experts([ChannelSums.empty(2, needs=needs)])[0].statistics()
    assert nothing["mean"].tolist() == [0.0, 0.0] and nothing["gram"].tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_unseen_experts_take_the_mean_of_their_layer() -> None:
    seen = [ChannelSums(torch.tensor([2.0, 4.0]), 3), ChannelSums(torch.tensor([4.0, 0.0]), 1)]
    filled = fill_unseen_experts([seen[0], ChannelSums.empty(2), seen[1]])
    assert filled[1].square_sum.tolist() == [3.0, 2.0]
    assert fill_unseen_experts([ChannelSums.empty(2)])[0].norm.tolist() == [1.0, 1.0]


def test_who_waits_for_the_text_sees_every_step(
    tiny_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, int] = {}

    @contextmanager
    def bar(what: str, total: int) -> Iterator[Callable[[], None]]:
        shown.update(total=total, steps=0)
        yield lambda: shown.update(steps=shown["steps"] + 1)

    model, tokenizer = crepe.load(tiny_folder())
    silent = self_rows(model, tokenizer, 5, 20, seed=0)
    monkeypatch.setattr(self_text, "_BATCH", 5)
    monkeypatch.setattr(self_text, "bar", bar)
    monkeypatch.setattr(self_text, "bars_wanted", lambda: True)
    assert torch.equal(self_rows(model, tokenizer, 5, 20, seed=0), silent)
    self_rows(model, tokenizer, 7, 20, seed=0)
    assert shown["steps"] == shown["total"] > 20


def test_self_text_is_seeded_and_full(tiny_folder: Callable[..., str]) -> None:
    model, tokenizer = crepe.load(tiny_folder())
    rows = self_rows(model, tokenizer, 5, 20, seed=0)
    assert rows.shape == (5, 20)
    assert torch.equal(rows, self_rows(model, tokenizer, 5, 20, seed=0))
    assert not torch.equal(rows, self_rows(model, tokenizer, 5, 20, seed=1))
    assert bool((rows[:, 0] == 1).all())
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}!{% endfor %}"
    assert tokenizer.decode(self_rows(model, tokenizer, 2, 20, seed=0)[0, :6]) == "[user]"


def test_writing_text_reads_the_head_without_gaps(tiny_folder: Callable[..., str]) -> None:
    """Through a view with gaps torch copies the whole output embedding once per row."""
    model, tokenizer = crepe.load(tiny_folder())
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}!{% endfor %}"
    seen: list[bool] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].is_contiguous()))
    self_rows(model, tokenizer, 5, 20, seed=0)
    assert seen and all(seen)
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("family", ["llama", "qwen3", "falcon", "gpt_bigcode", "mixtral"])
def test_cache_bytes_are_those_of_the_cache(family: str) -> None:
    model = tiny_model(family)
    cache = model(torch.ones(5, 12, dtype=torch.int64), use_cache=True).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert cache_bytes(model, 5, 12) == cache_bytes(model.to("meta"), 5, 12) == held
