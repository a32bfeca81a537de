"""Command lines as lists of words: options taken out, options replaced."""

from collections.abc import Sequence


def without(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """argv less the named options and their values, written ``--name value`` or ``--name=value``."""
    kept: list[str] = []
    dropping = False
    for token in argv:
        if token.startswith("--"):
            dropping = token.split("=", 1)[0] in names
        if not dropping:
            kept.append(token)
    return kept


def with_flags(argv: Sequence[str], flags: Sequence[str]) -> list[str]:
    """argv with ``flags`` in place of earlier values of the same options."""
    return [*without(argv, [token for token in flags if token.startswith("--")]), *flags]
