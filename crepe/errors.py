"""The two errors that users see as one line: what was wrong, with its value, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CrepeError(Exception):
    """A known failure; the command line prints it as one line and exits with 1."""

    exit_code = 1


class UsageError(CrepeError):
    """A wrong flag, key or value; raised before anything is touched, exit code 2."""

    exit_code = 2


def unknown(kind: str, value: str, choices: Iterable[str]) -> UsageError:
    """The error for a name that is not among `choices`, with the nearest one suggested."""
    names = sorted(choices)
    near = difflib.get_close_matches(value, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from: {', '.join(names) or 'none yet'}"
    return UsageError(f"unknown {kind} {value!r}: {hint}")
