"""crepe push"""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("push", help="upload an output folder to the Hub (private unless --public)")
    parser.add_argument("folder", metavar="DIR", help="output of crepe prune")
    parser.add_argument("repo_id", metavar="REPO_ID", help="owner/name")
    parser.add_argument("--public", action="store_true", help="create the repository public")
    parser.add_argument("--create-pr", action="store_true", help="propose the files in a pull request")
    parser.add_argument("--dry-run", action="store_true", help="print what would be uploaded")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    from crepe.checkpoint.hub import push
    from crepe.cli.output import emit, megabytes

    done = push(
        arguments.folder,
        arguments.repo_id,
        public=arguments.public,
        create_pr=arguments.create_pr,
        dry_run=arguments.dry_run,
    )
    kind = "private" if done.private else "public"
    head = f"{'would push' if arguments.dry_run else 'pushed'} to {done.repo_id} ({kind}): {done.url or ''}".rstrip(
        ": "
    )
    emit(arguments.json, asdict(done), [head, *(f"  {name}  {megabytes(size)}" for name, size in done.files.items())])
