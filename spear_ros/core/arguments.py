"""Command lines that end in ``key=value`` settings."""

import argparse
from collections.abc import Sequence


def parse_with_settings(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Parse; ``key=value`` may stand before, between and after the options.

    argparse takes a list of positional words in one piece only, so ``batch_size=8 --out RUN
    steps=9`` would be refused for its last word. Whatever else is unknown still ends the program.
    """
    args, rest = parser.parse_known_args(argv)
    if rest:
        settings: list[str] | None = getattr(args, 'settings', None)
        if settings is None or not all(_is_setting(word) for word in rest):
            parser.error(f'unrecognized arguments: {" ".join(rest)}')
        args.settings = [*settings, *rest]
    return args


def _is_setting(word: str) -> bool:
    return '=' in word and not word.startswith('-')
