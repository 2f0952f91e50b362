"""`crepe prune` from the words of a recipe to a complete output folder."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crepe.calibration.rows import make_rows
from crepe.checkpoint.convert import save_packed
from crepe.checkpoint.manifest import manifest, read_manifest
from crepe.checkpoint.packed import layouts_of, notes_of, sizes_of
from crepe.checkpoint.section import packed_section
from crepe.checkpoint.write import assemble, combine_masks, publish
from crepe.errors import CrepeError, UsageError
from crepe.models.kind import is_image_model
from crepe.models.resolve import Source
from crepe.pipeline import distributed
from crepe.pipeline.fingerprint import refuse_if_changed, run_fingerprint
from crepe.pipeline.journal import Journal, is_started, work_folder
from crepe.pipeline.output import require_replaceable, require_room
from crepe.pipeline.plan import Plan, make_plan
from crepe.pipeline.prune import TensorReport
from crepe.pipeline.run import Runner
from crepe.pipeline.slices import assemble_slices
from crepe.recipe import Choices, Recipe, build, choose
from crepe.refine import Refinement


@dataclass
class Result:
    """What a run did. sparsity: achieved over the pruned tensors; peak_memory_bytes: of this process, resident.

    fits: by block and block refinement, the block's error on held-out batches before and after. units: of a structured
    pattern, by block, what became of its units; sliced: how many parameters are left, and how the config says so.
    packed: sizes of a packed output and of its pruned parameters, see `crepe.checkpoint.packed.sizes_of`.
    """

    output: str | None
    sparsity: float
    seconds: float
    peak_memory_bytes: int
    skipped: list[dict[str, Any]]
    source: str
    tensors: dict[str, TensorReport] = field(repr=False, default_factory=dict)
    fits: dict[str, dict[str, list[float]]] = field(repr=False, default_factory=dict)
    notes: list[str] = field(default_factory=list)
    packed: dict[str, Any] = field(repr=False, default_factory=dict)
    units: dict[str, Any] = field(repr=False, default_factory=dict)
    sliced: dict[str, Any] = field(default_factory=dict)
    model: Any = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        keys = ("output", "sparsity", "seconds", "peak_memory_bytes", "skipped", "source", "notes")
        found = {key: getattr(self, key) for key in keys} | {"tensors": len(self.tensors)}
        sizes = {key: value for key, value in self.packed.items() if key != "tensors"}
        counts = {key: self.sliced[key] for key in ("parameters", "dense_parameters") if self.sliced}
        return {**found, **({"packed": sizes} if sizes else {}), **counts}


def prune(model: Any = None, output: str | Path | None = None, *, tokenizer: Any = None, **fields: Any) -> Any:
    """Prune a model: keyword arguments are the fields of `crepe.recipe.Recipe`.

    Args:
        model: a Hub id, folder, .gguf file or alias; or a transformers model in memory, which is pruned in place.
        output: the folder to write; may be left out for a model in memory.
        tokenizer: for a model in memory, whose calibration text has to become tokens.
        example: for an image model in memory, pixel values (count, 3, height, width) that it takes.

    Returns:
        A `Result`, or for an image model a `crepe.vision.job.ImageResult`.

    Raises:
        CrepeError: one line that says what was wrong and what to do (UsageError for wrong words).
    """
    started = time.perf_counter()
    distributed.start()
    example = fields.pop("example", None)
    if example is not None and not isinstance(model, (str, Path)):
        from crepe.vision.job import prune_image_object

        return prune_image_object(model, example, {**fields, "output": output}, started)
    if model is not None and not isinstance(model, (str, Path)):
        return _prune_object(model, tokenizer, output, fields, started)
    given = {**fields, "output": str(output) if output else None}
    if model is not None:
        given["model"] = str(model)
    given = {key: value for key, value in given.items() if value is not None}
    recipe = build(given)
    if is_image_model(recipe.model, recipe.revision):
        from crepe.vision.job import prune_image_model

        return prune_image_model(given, started)
    if recipe.output is None:
        raise UsageError("no output: give --output with the folder to write")
    choices = choose(recipe)
    _require_one_process(choices)
    return _prune_named(recipe, choices, started)


def _require_one_process(choices: Choices) -> None:
    """Raises UsageError where something looks at whole blocks, of which each rank sees its own batches only."""
    whole = [name for name, found in choices.refinements.items() if not isinstance(found, Refinement)]
    if whole and distributed.world_size() > 1:
        raise UsageError(f"refinement {whole[0]!r} needs all batches in one process: run it without a launcher")


def prepare(recipe: Recipe, choices: Choices) -> tuple[Source, Any, Plan]:
    """Resolve the model and plan the run on the meta device; nothing is touched."""
    from crepe.models.load import skeleton

    source = find_model(recipe, weights=False)
    bones = skeleton(source, recipe.dtype, recipe.trust_remote_code)
    return source, bones, make_plan(bones, choices)


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


def _prune_named(recipe: Recipe, choices: Choices, started: float) -> Result:
    run = _prepared(recipe, choices, started)
    if run.output.exists():
        require_replaceable(run.output, run.source)
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


def _from_journal(run: _Run, journal: Journal) -> Result:
    """From an open journal to a published folder."""
    from crepe.models.load import load_tokenizer, open_model

    recipe = run.choices.recipe
    run.tokenizer = run.tokenizer or load_tokenizer(run.source, recipe.trust_remote_code)
    rows = _rows(run, journal.folder) if _needs_rows(run.choices) else None
    if run.model is None:
        offload = journal.folder / f"offload-{distributed.rank()}"
        run.model = open_model(run.source, recipe.dtype, offload, recipe.trust_remote_code, recipe.weights)
    done = _walk(run.model, run.choices, run.device, journal, rows)
    result = _result(str(run.output), done, run.started, str(run.source))
    if distributed.is_main():
        final = _assembled(run, done, journal.folder, result)
        run.tokenizer.save_pretrained(final)
        if recipe.save_masks:
            combine_masks(journal.folder, len(done.plan.blocks), done.reports, final / "masks.safetensors")
        _describe(final, run.choices, run.source, rows, result, run.fingerprint)
        # A resumed run replaces what it was started to replace.
        publish(final, run.output, recipe.overwrite or recipe.resume)
    distributed.wait()
    return result


def _prune_object(model: Any, tokenizer: Any, output: Any, fields: dict[str, Any], started: float) -> Result:
    """A model in memory: pruned in place, and saved where an output is given."""
    from crepe.models.load import use_eager_experts

    rows = fields.pop("rows", None)
    recipe = build({"model": getattr(model, "name_or_path", "") or type(model).__name__, **fields})
    choices = choose(recipe)
    _require_one_process(choices)
    if output is None and recipe.format == "sliced":
        raise UsageError("format 'sliced' writes a folder and leaves the model's own shapes: give an output")
    if rows is None and _needs_rows(choices):
        rows = make_rows(recipe, tokenizer, lambda: model)
    if output is not None and Path(output).exists():
        require_replaceable(Path(output), Source("", "", Path(recipe.model)))
        if not recipe.overwrite:
            raise CrepeError(f"{output} exists: choose another folder, or overwrite=True")
    use_eager_experts(model)
    device = next(model.parameters()).device
    training = model.training
    done = _walk(model.eval(), choices, device, None, rows)
    model.train(training)
    result = _result(str(output) if output else None, done, started, recipe.model)
    result.model = model
    if output is not None and distributed.is_main():
        _save_object(model, tokenizer, Path(output), done, rows, result)
    return result


def _save_object(model: Any, tokenizer: Any, output: Path, done: Runner, rows: Tensor | None, result: Result) -> None:
    """The folder of a model that was pruned in memory, complete as that of a model by name."""
    choices, final = done.choices, work_folder(output) / "final"
    if final.parent.exists() and not choices.recipe.overwrite:
        raise CrepeError(f"{final.parent} holds an unfinished run: move it away, or overwrite=True")
    shutil.rmtree(final.parent, ignore_errors=True)
    if choices.recipe.format == "packed":
        patterns = {name: report.pattern for name, report in result.tensors.items()}
        written, reports = save_packed(model, patterns, final.parent)
        result.packed = sizes_of(written, reports)
        result.notes += notes_of(reports)
    elif choices.recipe.format == "sliced":
        final.parent.mkdir(parents=True)
        _, result.sliced = assemble_slices(final.parent, model, done)
    else:
        model.save_pretrained(final)
    if tokenizer is not None:
        tokenizer.save_pretrained(final)
    name = choices.recipe.model
    _describe(final, choices, Source(name, name, Path()), rows, result, {})
    publish(final, output, choices.recipe.overwrite)


def _needs_rows(choices: Choices) -> bool:
    return bool(choices.needs | choices.allocation.needs) or choices.fits_blocks


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


def _walk(model: Any, choices: Choices, device: torch.device, journal: Journal | None, rows: Tensor | None) -> Runner:
    """Walk with the largest batch that fits; the whole model at once where its blocks cannot be walked.

    Raises:
        CrepeError: memory does not suffice and the walk cannot start again: for one row, for several processes, or
            where the model in memory has been changed already.
    """
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    from crepe.pipeline.walk import OutOfOrder

    plan, batch_size = make_plan(model, choices), choices.recipe.batch_size
    while True:
        runner = _runner(choices)(model, plan, choices, device, journal)
        try:
            runner.prune(rows, batch_size)
            return runner
        except OutOfOrder as error:
            _require_restart(runner, f"the forward does not pass the blocks in order (at {error}), noticed too late")
            plan = plan.as_one_block(model, choices, str(error))
            if journal is not None:
                journal.forget()
        except Exception as error:
            if not should_reduce_batch_size(error):
                raise
            _require_restart(runner, f"memory does not suffice for --batch-size {batch_size}", batch_size > 1)
            batch_size //= 2
            clear_device_cache(garbage_collection=True)


def _runner(choices: Choices) -> type[Runner]:
    from crepe.pipeline.depth import BlockRunner
    from crepe.pipeline.structured import UnitRunner

    if not choices.structured:
        return Runner
    return BlockRunner if choices.pattern.unit == "block" else UnitRunner


def _require_restart(runner: Any, reason: str, possible: bool = True) -> None:
    if not possible or runner.modified or distributed.world_size() > 1:
        raise CrepeError(f"{reason}: start again with a smaller --batch-size or --seqlen")


def _result(output: str | None, done: Runner, started: float, source: str) -> Result:
    plan, reports = done.plan, done.reports
    total = sum(report.total for report in reports.values())
    zeros = sum(report.zeros for report in reports.values())
    unseen = [name for name, report in reports.items() if not report.tokens and "[" not in name]
    notes = [*plan.notes, *done.notes]
    if unseen and any(report.tokens for report in reports.values()):
        notes.append(f"{len(unseen)} matrices saw no input and were scored by their weights alone, such as {unseen[0]}")
    stuck = [name for name, report in reports.items() if report.columns == "in place" and report.pattern != "dense"]
    if "fold" in done.choices.recipe.refine and stuck:
        notes.append(
            f"{len(stuck)} matrices keep the order of their columns, such as {stuck[0]}: nothing beside them in their "
            "block produces their inputs row by row"
        )
    skipped = [{"name": s.name, "shape": list(s.shape), "reason": s.reason} for s in [*plan.skipped, *done.left]]
    seconds = time.perf_counter() - started
    return Result(
        output, zeros / total, seconds, peak_memory(), skipped, source, reports, done.fits, notes, units=done.units
    )


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes; with an accelerator, the larger of both."""
    import resource
    import sys

    scale = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return max(resident, torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


def _describe(
    final: Path, choices: Choices, source: Source, rows: Tensor | None, result: Result, fingerprint: dict[str, Any]
) -> None:
    """crepe.json, card and report."""
    from crepe.report.folder import write_report

    content = manifest(choices, source, rows, result, fingerprint)
    (final / "crepe.json").write_text(json.dumps(content, indent=2) + "\n")
    write_report(final)
