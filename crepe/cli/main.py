"""The command line: verbs, one sink for results, one for failures. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from crepe import __version__
from crepe.cli import bench, convert, evaluate, prune, push, report, search
from crepe.errors import CrepeError

_VERBS = (prune, search, evaluate, bench, convert, report, push)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crepe",
        description="Prune trained Hugging Face models without training.",
        epilog="example: crepe prune --model llama --output llama-50",
    )
    parser.add_argument("--version", action="version", version=f"crepe-prune {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in _VERBS:
        verb.add_parser(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0 done, 1 a known error, 2 wrong usage."""
    given = build_parser().parse_args(arguments)
    run = given.run
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING, force=True)
    logging.getLogger("crepe").setLevel(logging.INFO)
    try:
        run(given)
        return 0
    except CrepeError as error:
        return _fail(str(error), error, error.exit_code)
    except KeyboardInterrupt as error:
        return _fail("interrupted; prune goes on with --resume, search with the same --storage", error, 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error}; check the path, its permissions and the free space", error, 1)
    except Exception as error:
        return _fail(f"unexpected {type(error).__name__}: {error}; CREPE_DEBUG=1 shows where", error, 1)


def _fail(message: str, error: BaseException, code: int) -> int:
    """One line on stderr; the traceback only where it is asked for."""
    if os.environ.get("CREPE_DEBUG") == "1":
        raise error
    sys.stderr.write(f"crepe: error: {' '.join(message.split())}\n")
    return code


if __name__ == "__main__":  # the module that launchers were told to start before there was `python -m crepe`
    sys.exit(main())
