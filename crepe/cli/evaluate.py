"""crepe eval"""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "eval",
        help="perplexity, fidelity and lm-eval tasks",
        description="Measure a model on text, alone or beside its dense reference.",
        epilog="example: crepe eval llama-50 --reference llama --data wikitext2 --seqlen 512",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("model", metavar="M", help="output folder, Hub id, .gguf file or alias")
    parser.add_argument(
        "--data", metavar="SRC", help="wikitext2 (default), c4, self, a Hub data set, a text file or images"
    )
    parser.add_argument("--seqlen", type=int, metavar="L", help="tokens per window (default 2048)")
    parser.add_argument("--max-windows", type=int, metavar="N", help="only the first N windows")
    parser.add_argument("--max-images", type=int, metavar="N", help="only N images, chosen by a fixed seed")
    parser.add_argument("--weights", metavar="FILE", help="weights for an image architecture that an alias names")
    parser.add_argument("--reference-weights", metavar="FILE", help="the same for --reference")
    parser.add_argument("--latency", action="store_true", help="image models: time both networks on this machine")
    parser.add_argument("--reference", metavar="M", help="dense model to compare with: KL divergence, top-1 agreement")
    parser.add_argument("--tasks", type=_names, metavar="T,...", help="lm-eval tasks (pip install crepe-prune[eval])")
    parser.add_argument("--include-path", metavar="DIR", help="folder with lm-eval task files of your own")
    parser.add_argument("--dtype", metavar="T", help="auto (default), bfloat16, float16, float32")
    parser.add_argument("--device", metavar="D", help="auto (default), cpu, cuda, ...")
    parser.add_argument("--save", action="store_true", help="write the numbers into the folder's card and report")
    parser.add_argument("--trust-remote-code", action="store_true", help="allow code from the model's repository")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def run(arguments: argparse.Namespace) -> None:
    from crepe.checkpoint.card import comparison, task_results
    from crepe.cli.output import emit, table
    from crepe.eval.evaluate import evaluate

    given = {key: value for key, value in vars(arguments).items() if key not in ("run", "verb", "json")}
    result = evaluate(given.pop("model"), **given)
    if "accuracy" in result:
        from crepe.vision.card import measured

        dense = {key: f"{result[key]:,}" for key in result if key in ("reference_parameters", "reference_macs")}
        costs = [(key, dense.get(f"reference_{key}", ""), f"{result[key]:,}") for key in ("parameters", "macs")]
        lines = table([("", "dense", "model"), *measured(result), *costs])
        emit("json" in arguments, result, lines)
        return
    lines = table([("", "dense", "model"), *comparison(result)])
    if task_results(result):
        lines += ["", *table([("lm-eval", "model"), *task_results(result)])]
    emit("json" in arguments, result, lines)
