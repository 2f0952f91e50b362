"""crepe report"""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("report", help="make the card and report.html of an output folder again")
    parser.add_argument("folder", metavar="DIR", help="output of crepe prune")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from crepe.cli.output import emit
    from crepe.report.folder import write_report

    path = write_report(Path(arguments.folder))
    emit(arguments.json, {"report": str(path)}, [str(path)])
