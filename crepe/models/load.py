"""Opening a model: parameters stay on disk where the format allows it, in memory where it does not (.gguf)."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from crepe.errors import CrepeError, UsageError
from crepe.models.resolve import Source

DTYPES = ("auto", "float32", "bfloat16", "float16")


def parse_dtype(name: str, source: Source) -> torch.dtype | str:
    """`auto` is the dtype of the checkpoint, and bfloat16 for a .gguf file, whose quantised weights have none."""
    if name not in DTYPES:
        raise UsageError(f"unknown dtype {name!r}: choose from {', '.join(DTYPES)}")
    if name != "auto":
        found: torch.dtype = getattr(torch, name)
        return found
    return torch.bfloat16 if source.gguf else "auto"


def parse_device(name: str) -> torch.device:
    """`auto` is the accelerator where there is one, else the CPU."""
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def open_model(
    source: Source,
    dtype: str = "auto",
    offload_folder: Path | None = None,
    trust_remote_code: bool = False,
    weights: str | None = None,
) -> Any:
    """A causal language model in evaluation mode.

    With `offload_folder` the parameters of a safetensors checkpoint stay on disk (accelerate's disk offload; only
    tensors that must be converted on loading are written to that folder). Without, the model is in memory.

    Raises:
        CrepeError: the files are missing, truncated or of a kind that transformers cannot load.
    """
    check_files(source)
    arguments: dict[str, Any] = {"dtype": parse_dtype(dtype, source), "trust_remote_code": trust_remote_code}
    if source.gguf:
        arguments |= _gguf_arguments(source)
    elif offload_folder is not None and weights is None:
        arguments |= {"device_map": {"": "disk"}, "offload_folder": str(offload_folder)}
    with readable_failure(source), quiet():
        model = _from_file(source, weights, arguments) if weights else _from_pretrained(source, arguments)
    use_eager_experts(model)
    return model.eval().requires_grad_(False)


def _from_pretrained(source: Source, arguments: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(source.folder, output_loading_info=True, **arguments)
    require_complete(source, report)
    return model


def require_complete(source: Source, report: dict[str, Any]) -> None:
    """Raises CrepeError where tensors were missing, which transformers makes up at random. report: its loading info."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise CrepeError(f"checkpoint of {source.name} lacks {len(missing)} tensors, such as {missing[0]!r}")


def _from_file(source: Source, weights: str, arguments: dict[str, Any]) -> Any:
    """The architecture of `source` with the weights of one safetensors file (--weights)."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    config = load_config(source, arguments["trust_remote_code"])
    dtype = arguments["dtype"] if arguments["dtype"] != "auto" else config.dtype
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=arguments["trust_remote_code"])
    wrong = model.load_state_dict(load_file(weights), strict=False)
    missing = [k for k in wrong.missing_keys if k not in getattr(model, "all_tied_weights_keys", {})]
    if missing or wrong.unexpected_keys:
        raise CrepeError(
            f"{weights} does not fit {source.name}: missing {missing[:3]}, unexpected {wrong.unexpected_keys[:3]}"
        )
    return model


def load_config(source: Source, trust_remote_code: bool = False) -> Any:
    from transformers import AutoConfig

    more = {"gguf_file": source.gguf} if source.gguf else {}
    with readable_failure(source):
        return AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code, **more)


def skeleton(source: Source, dtype: str = "auto", trust_remote_code: bool = False) -> Any:
    """The model on the meta device: structure and shapes without weights. Raises CrepeError for unknown kinds."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = load_config(source, trust_remote_code)
    section = None if source.gguf else getattr(config, "quantization_config", None)
    if section is not None:
        raise CrepeError(_not_dense(source, section))
    wanted = parse_dtype(dtype, source)
    more = {"dtype": config.dtype or torch.float32 if wanted == "auto" else wanted}
    with readable_failure(source), quiet(), init_empty_weights():
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, **more)


def _not_dense(source: Source, section: Any) -> str:
    if isinstance(section, dict) and section.get("format") == "sliced":
        return (
            f"{source.name} has a width for each layer and cannot be pruned again: prune the original model, with all "
            "that shall go in one run"
        )
    if isinstance(section, dict) and (section.get("quant_method") == "crepe" or section.get("sparsity_config")):
        return f"{source.name} is packed: unpack it first with `crepe convert {source.asked} OUT --format dense`"
    return f"{source.name} is quantised: prune the original floating-point model and quantise afterwards"


def require_length(config: Any, tokens: int, what: str | None = None, flag: str = "--seqlen") -> None:
    """Raises CrepeError where `tokens` are more than the model has positions for. what, flag: how the error calls them,
    and what lowers them."""
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and 0 < longest < tokens:
        what = what or f"seqlen {tokens}"
        raise CrepeError(f"{what} is more than the {longest} tokens that the model can read: lower {flag}")


def load_tokenizer(source: Source, trust_remote_code: bool = False) -> Any:
    """The tokenizer, from the .gguf file where that is the model."""
    from transformers import AutoTokenizer

    more = {"gguf_file": source.gguf} if source.gguf else {}
    with readable_failure(source, "tokenizer"), quiet():
        return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust_remote_code, **more)


def check_files(source: Source) -> None:
    """Every weight file opens and is as long as its header says; raises CrepeError naming the first that is not."""
    from safetensors import SafetensorError, safe_open

    if source.gguf:
        return
    files = sorted(source.folder.glob("*.safetensors"))
    if not files and not list(source.folder.glob("*.bin")):
        raise CrepeError(f"{source.folder} has a config but no weights: expected model*.safetensors")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise CrepeError(f"{file} is truncated or corrupt ({error}): download or copy it again") from error


def _gguf_arguments(source: Source) -> dict[str, Any]:
    from transformers import GgufConfig

    return {"gguf_file": source.gguf, "quantization_config": GgufConfig(dequantize=True)}


def use_eager_experts(model: Any) -> None:
    """Let each expert compute its own matrix product."""
    # The statistics watch the matrix product of each expert; fused expert kernels would hide it.
    if getattr(model.config, "_experts_implementation", None) not in (None, "eager"):
        model.set_experts_implementation("eager")


@contextlib.contextmanager
def readable_failure(source: Source, what: str = "model") -> Iterator[None]:
    try:
        yield
    except CrepeError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CrepeError(f"transformers cannot load the {what} at {source.folder}: {first}") from error


def _mismatches(report: str) -> list[str]:
    """Of transformers' report of a load, the tensors of other shapes than the model's: the error only points to it."""
    rows = [[cell.strip() for cell in line.split("|")] for line in report.splitlines()]
    return [f"{row[0]}: {row[2]}" for row in rows if len(row) > 2 and row[1] == "MISMATCH"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers' and gguf's own bars and notices off while they load; ours say what matters."""
    from transformers.utils import logging as theirs

    bars = theirs.is_progress_bar_enabled()
    accelerate = logging.getLogger("accelerate")
    accelerate_level = accelerate.level
    accelerate.setLevel(logging.ERROR)
    theirs.disable_progress_bar()
    try:
        with _heard(theirs.get_logger("transformers")) as heard, contextlib.redirect_stderr(io.StringIO()):
            try:
                yield
            except Exception as error:
                found = _mismatches(heard.getvalue())
                if found:
                    raise RuntimeError(found[0]) from error
                raise
    finally:
        accelerate.setLevel(accelerate_level)
        if bars:
            theirs.enable_progress_bar()


@contextlib.contextmanager
def _heard(library: logging.Logger) -> Iterator[io.StringIO]:
    """What a library warns of, which only errors of it get past. It may pass its lines on to the root's handlers, as
    transformers does where the environment says CI."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or not f"{record.name}.".startswith(f"{library.name}.")

    text, level, muted = io.StringIO(), library.level, [*library.handlers, *logging.root.handlers]
    listener = logging.StreamHandler(text)
    for handler in muted:
        handler.addFilter(is_wanted)
    library.addHandler(listener)
    library.setLevel(logging.WARNING)
    try:
        yield text
    finally:
        library.setLevel(level)
        library.removeHandler(listener)
        for handler in muted:
            handler.removeFilter(is_wanted)
