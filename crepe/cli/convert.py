"""crepe convert"""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "convert",
        help="packed to dense and back",
        description="Write an output folder in the other format; the weights stay the same bit by bit.",
        epilog="example: crepe convert llama-2of4 llama-2of4-packed --format packed",
    )
    parser.add_argument("folder", metavar="DIR", help="output of crepe prune, or a checkpoint in sparse-24-bitmask")
    parser.add_argument("output", metavar="OUT", help="folder to write")
    parser.add_argument("--format", required=True, choices=("dense", "packed"), help="format of OUT")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from crepe.checkpoint.convert import convert
    from crepe.cli.output import emit, megabytes

    done = convert(arguments.folder, arguments.output, arguments.format, arguments.overwrite)
    line = (
        f"{done['output']}: {done['format']}, {megabytes(done['bytes'])} instead of {megabytes(done['bytes_before'])}"
    )
    emit(arguments.json, done, [line, *(f"note: {note}" for note in done["notes"])])
