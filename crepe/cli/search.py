"""crepe search"""

from __future__ import annotations

import argparse
from typing import Any

_TEXT = [
    ("--model", "M", "Hub id, folder, .gguf file or alias (llama, qwen3-0.6b, ...)"),
    ("--weights", "FILE", "safetensors file with other weights for the architecture of --model"),
    ("--revision", "REV", "branch, tag or commit of a Hub model"),
    ("--output", "FILE", "coefficient file (YAML) to write; the report lies beside it as .html"),
    ("--pattern", "P", "unstructured (default) or N:M such as 2:4"),
    ("--compare", "GROUP", "unstructured: compare weights over the tensor (default) or each output row"),
    ("--proxy", "NAME", "fisher (default), gini, recon, block, kl, ppl, ..., or several joined by +"),
    ("--sampler", "NAME", "tpe (default), cmaes, hill-climb, random"),
    ("--storage", "JOURNAL", "file that keeps the study: resumes it, and lets several processes work on it"),
    ("--include", "GLOBS", "parameters to prune although they stay dense by default"),
    ("--exclude", "GLOBS", "parameters to leave dense"),
    ("--calibration", "SRC", "self (default: the model writes it), wikitext2, c4, a Hub data set or a text file"),
    ("--device", "D", "auto (default), cpu, cuda, cuda:1, ..."),
    ("--dtype", "T", "auto (default: the checkpoint's), bfloat16, float16, float32"),
]
_NUMBERS = [
    ("--sparsity", float, "S", "share of weights to remove (default 0.5; N:M has its own)"),
    ("--trials", int, "N", "points to try in all (default 200)"),
    ("--patience", int, "N", "stop when N trials in a row bring nothing better"),
    ("--check", int, "N", "measure the perplexity of N trials, from the best to the worst, for the report"),
    ("--samples", int, "N", "calibration rows (default 64)"),
    ("--finalists", int, "N", "points that the model itself decides among at the end (default 10; 0 for none)"),
    ("--held", int, "N", "rows besides, for proxies that run the model (default 8)"),
    ("--seqlen", int, "L", "tokens per calibration row (default 512)"),
    ("--seed", int, "S", "seed of every choice (default 0)"),
]
_SWITCHES = [
    ("--groups", "coefficients of their own for attention and for everything else"),
    ("--trust-remote-code", "allow code from the model's repository"),
    ("--overwrite", "replace an existing coefficient file"),
    ("--json", "print one JSON object"),
]


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "search",
        help="find the coefficients of the crepe score for a model",
        description="Find the coefficients of the crepe score with a cheap proxy instead of perplexity (PHO).",
        epilog="example: crepe search --model llama --pattern 2:4 --output llama-2of4.yaml",
        argument_default=argparse.SUPPRESS,
    )
    for flag, name, text in _TEXT:
        parser.add_argument(flag, metavar=name, help=text)
    for flag, kind, name, text in _NUMBERS:
        parser.add_argument(flag, type=kind, metavar=name, help=text)
    for name, what in (("balance", "row / (row + column)"), ("neighbourhood", "its share"), ("activation", "exponent")):
        parser.add_argument(f"--{name}", type=_range, metavar="LOW,HIGH", help=f"range of {what}")
    parser.add_argument("--forms", type=_names, metavar="A,B", help="forms of the neighbourhood term to choose from")
    parser.add_argument("--kernels", type=_sizes, metavar="3,5", help="window sizes to choose from (default 3,5,7)")
    for flag, text in _SWITCHES:
        parser.add_argument(flag, action="store_true", help=text)
    parser.set_defaults(run=run)


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be LOW,HIGH such as 0,1") from None
    return low, high


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(",") if size)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be window sizes such as 3,5,7") from None


def run(arguments: argparse.Namespace) -> None:
    from crepe.cli.output import emit
    from crepe.errors import UsageError
    from crepe.report.search import write_search_report
    from crepe.search.find import search

    given = {key: value for key, value in vars(arguments).items() if key not in ("run", "verb", "json")}
    if "output" not in given:
        raise UsageError("no output: give --output with the coefficient file to write")
    found = search(given.pop("model", None), given.pop("output"), **given)
    report = write_search_report(found)
    result = {
        "output": found.output,
        "coefficients": found.coefficients.to_dict(),
        "value": found.value,
        "reference": found.reference,
        "trials": found.trials,
        "seconds": found.seconds,
        "seconds_per_trial": found.seconds_per_trial,
        "source": found.source,
        "judged": found.judged,
        "checked": found.checked,
        "report": str(report),
    }
    lines = [
        f"{found.output}: {_in_words(found.coefficients)}",
        f"{found.trials} trials, {found.seconds:.0f} s, {found.seconds_per_trial:.3f} s per trial; "
        f"proxy {found.value:.6g}, plain RIA {found.reference:.6g}",
        *(f"{j['judge']:.4f} nats of divergence: {j['name']}" for j in found.judged[:3]),
        *(f"perplexity {c['perplexity']:.2f}: {_trial(c)}, proxy {c['proxy']:.6g}" for c in found.checked),
        f"report: {report}",
    ]
    emit("json" in arguments, result, lines)


def _trial(checked: dict[str, float]) -> str:
    return "plain RIA" if checked["trial"] < 0 else f"trial {checked['trial']:.0f}"


def _in_words(found: Any) -> str:
    own = (
        f"row {found.row:.3f}, column {found.column:.3f}, neighbourhood {found.neighbourhood:.3f} "
        f"({found.form}, {found.kernel} x {found.kernel}), activation {found.activation:.3f}"
    )
    return "; ".join([own, *(f"{kind}: {_in_words(group)}" for kind, group in found.groups.items())])
