"""A run of a model by name: prepared, journaled block by block, resumed where it was killed, published whole."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crepe.calibration.rows import make_rows
from crepe.checkpoint.manifest import read_manifest
from crepe.checkpoint.packed import layouts_of, notes_of, sizes_of
from crepe.checkpoint.section import packed_section
from crepe.checkpoint.write import assemble, combine_masks, publish, require_replaceable
from crepe.errors import CrepeError
from crepe.models.resolve import Source
from crepe.pipeline import distributed
from crepe.pipeline.attempt import needs_rows, walk_model
from crepe.pipeline.fingerprint import refuse_if_changed, run_fingerprint
from crepe.pipeline.journal import Journal, is_started, work_folder
from crepe.pipeline.output import describe, require_room
from crepe.pipeline.plan import make_plan
from crepe.pipeline.prune import TensorReport
from crepe.pipeline.result import Result, result_of
from crepe.pipeline.run import Runner
from crepe.pipeline.slices import assemble_slices
from crepe.recipe import Choices, Recipe


@dataclass
class _Run:
    """A run by name: what it was asked for and what it works on. model, tokenizer: where they are in memory already."""

    choices: Choices
    source: Source
    device: torch.device
    fingerprint: dict[str, Any]
    started: float
    model: Any = None
    tokenizer: Any = None

    @property
    def output(self) -> Path:
        return Path(str(self.choices.recipe.output))


def prune_named(recipe: Recipe, choices: Choices, started: float) -> Result:
    run = _prepared(recipe, choices, started)
    if run.output.exists():
        require_replaceable(run.output, run.source.folder)
        if not recipe.overwrite and not (recipe.resume and is_started(run.output)):
            return _already_there(run)
    require_room(run.output, run.source)
    journal = _open_journal(run)
    try:
        return _from_journal(run, journal)
    except CrepeError:
        # What failed before the first block was finished leaves nothing behind that a next try would stumble over.
        if distributed.is_main() and not journal.lines:
            shutil.rmtree(journal.folder, ignore_errors=True)
        raise


def find_model(recipe: Recipe, weights: bool = True) -> Source:
    """The model's files, checked, and said to the user before anything long begins."""
    from crepe.models.load import check_files
    from crepe.models.resolve import announce, resolve

    source = resolve(recipe.model, recipe.revision, weights)
    if weights:
        check_files(source)
    if distributed.is_main():
        announce(source)
    return source


def _prepared(recipe: Recipe, choices: Choices, started: float) -> _Run:
    """Everything that can be checked before the output is touched."""
    from crepe.models.gguf import reading_once
    from crepe.models.load import load_tokenizer, open_model, parse_device, require_length, skeleton

    device = parse_device(recipe.device)
    source = find_model(recipe)
    run = _Run(choices, source, device, run_fingerprint(recipe, source, device), started)
    if source.gguf:
        # The file comes into memory whole, so planning on its weights saves reading it twice.
        with reading_once():
            run.model = open_model(source, recipe.dtype, None, recipe.trust_remote_code, recipe.weights)
            run.tokenizer = load_tokenizer(source, recipe.trust_remote_code)
    planned_on = run.model or skeleton(source, recipe.dtype, recipe.trust_remote_code)
    make_plan(planned_on, choices)
    require_length(planned_on.config, recipe.seqlen)
    return run


def _already_there(run: _Run) -> Result:
    """A complete output: the answer to --resume when the kill came after the last step, an error otherwise."""
    if not run.choices.recipe.resume:
        raise CrepeError(f"{run.output} exists: choose another --output, or replace it with --overwrite")
    content = read_manifest(run.output)
    refuse_if_changed(content.get("fingerprint", {}), run.fingerprint, run.output)
    shutil.rmtree(work_folder(run.output), ignore_errors=True)
    reports = {name: TensorReport(**about) for name, about in content["tensors"].items()}
    base = content["base_model"]["name"]
    skipped, fits, notes = content["skipped"], content.get("fits", {}), content["notes"]
    more = {key: content.get(key, {}) for key in ("packed", "units", "sliced")}
    return Result(str(run.output), content["sparsity"], 0.0, 0, skipped, base, reports, fits, notes, **more)


def _open_journal(run: _Run) -> Journal:
    recipe = run.choices.recipe

    def opened() -> Journal | CrepeError:
        try:
            return Journal.open(run.output, run.fingerprint, recipe.resume, recipe.overwrite)
        except CrepeError as error:
            return error

    journal: Any = distributed.from_main(opened() if distributed.is_main() else None)
    if isinstance(journal, CrepeError):
        raise journal
    found: Journal = journal
    return found


def _from_journal(run: _Run, journal: Journal) -> Result:
    """From an open journal to a published folder."""
    from crepe.models.load import load_tokenizer, open_model

    recipe = run.choices.recipe
    run.tokenizer = run.tokenizer or load_tokenizer(run.source, recipe.trust_remote_code)
    rows = _rows(run, journal.folder) if needs_rows(run.choices) else None
    if run.model is None:
        offload = journal.folder / f"offload-{distributed.rank()}"
        run.model = open_model(run.source, recipe.dtype, offload, recipe.trust_remote_code, recipe.weights)
    done = walk_model(run.model, run.choices, run.device, journal, rows)
    result = result_of(str(run.output), done, run.started, str(run.source))
    if distributed.is_main():
        final = _assembled(run, done, journal.folder, result)
        run.tokenizer.save_pretrained(final)
        if recipe.save_masks:
            combine_masks(journal.folder, len(done.plan.blocks), done.reports, final / "masks.safetensors")
        describe(final, run.choices, run.source, rows, result, run.fingerprint)
        # A resumed run replaces what it was started to replace.
        publish(final, run.output, recipe.overwrite or recipe.resume)
    distributed.wait()
    return result


def _rows(run: _Run, work: Path) -> Tensor:
    """Calibration rows, made once and kept in the work folder, so that a resumed run sees the same."""
    from safetensors.torch import load_file

    from crepe.checkpoint.files import save_tensors
    from crepe.models.load import open_model

    recipe = run.choices.recipe
    path = work / "calibration.safetensors"

    def writer() -> Any:
        opened = run.model or open_model(run.source, recipe.dtype, None, recipe.trust_remote_code, recipe.weights)
        return opened.to(run.device)

    def made() -> Tensor:
        if path.is_file():
            kept: Tensor = load_file(path)["rows"]
            return kept
        rows = make_rows(recipe, run.tokenizer, writer)
        save_tensors(path, {"rows": rows})
        return rows

    return distributed.from_main(made() if distributed.is_main() else None)


def _assembled(run: _Run, done: Runner, folder: Path, result: Result) -> Path:
    """The output folder, not yet in its place, in the format that was asked for."""
    if run.choices.recipe.format == "sliced":
        final, result.sliced = assemble_slices(folder, run.model, done)
    elif run.choices.recipe.format == "packed":
        section = packed_section(layouts_of(done.packed))
        final = assemble(folder, run.model, done.plan.blocks, done.store, section)
        result.packed = sizes_of(final, done.packed)
        result.notes += notes_of(done.packed)
    else:
        final = assemble(folder, run.model, done.plan.blocks, done.store)
    return final
