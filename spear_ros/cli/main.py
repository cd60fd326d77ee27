"""The ``spear`` command: finds its subcommands and turns errors into one sentence.

A subcommand is a module of this package that defines ``add_parser(subparsers)`` and
``run(args) -> int``; its docstring's first line is the help text. Only the chosen one is imported,
so that each starts with no more than its own dependencies.
"""

import argparse
import ast
import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from spear_ros.core.arguments import parse_with_settings
from spear_ros.core.errors import UserError

# Which extra of setup.py brings a missing module.
EXTRA_OF_MODULE = {
    'torch': 'policy',
    'safetensors': 'policy',
    'tokenizers': 'policy',
    'mujoco': 'sim',
    'rtbdata': 'sim',
    'rosbags': 'bag',
    'transformers': 'convert',
    'sentencepiece': 'convert',
    'pyarrow': 'train',
    'av': 'viz',
    'matplotlib': 'viz',
    'scipy': 'annotate',
    'PIL': 'annotate',
    'google': 'annotate',
}
USER_ERROR = 2
INTERRUPTED = 130


def commands() -> dict[str, str]:
    """Return the subcommands, name -> one line of help, without importing any."""
    found = {}
    for path in sorted(Path(__file__).parent.glob('*.py')):
        source = path.read_text(encoding='utf-8')
        if path.stem != 'main' and '\ndef add_parser(' in source:
            doc = ast.get_docstring(ast.parse(source)) or path.stem
            line = re.sub(r'^``spear [^`]*``: ', '', doc.splitlines()[0])
            found[path.stem.replace('_', '-')] = line
    return found


def build_parser(chosen: str) -> argparse.ArgumentParser:
    """Return the parser: the chosen subcommand in full, of the others only the help line."""
    parser = argparse.ArgumentParser(
        prog='spear', description='Runs and examines SPEAR-1 on robots with ROS 2.'
    )
    subparsers = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, line in commands().items():
        if name == chosen:
            module = importlib.import_module(f'spear_ros.cli.{name.replace("-", "_")}')
            module.add_parser(subparsers)
            subparsers.choices[name].set_defaults(run=module.run)
        else:
            subparsers.add_parser(name, help=line.replace('%', '%%'))
    return parser


def missing_module_sentence(error: ModuleNotFoundError) -> str | None:
    """Return the sentence for a dependency that is not installed; None for a fault of ours."""
    top = (error.name or '').split('.')[0]
    if top in ('', 'spear_ros'):
        return None
    if top in ('rclpy', 'spear_msgs') or top.endswith(('_msgs', '_srvs', '_interfaces')):
        return (
            f'the ROS 2 package {top} is not importable here: run `make venv` in the clone, or '
            'source /opt/ros/jazzy/setup.bash and your workspace.'
        )
    extra = EXTRA_OF_MODULE.get(top)
    if extra is None:
        return f'the Python package {top} is not installed: run `make venv` in the clone.'
    return (
        f'the Python package {top} is not installed: run `make venv` in the clone, or install '
        f'spear_ros with the extra "{extra}" (pip install "spear_ros[{extra}]").'
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; return its exit status (2 = bad input, told in one line on stderr)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in arguments if not word.startswith('-')), '')
    try:
        parser = build_parser(chosen)
        args = parse_with_settings(parser, arguments)
        return int(args.run(args))
    except UserError as error:
        sentence: str | None = str(error)
    except ModuleNotFoundError as error:
        sentence = missing_module_sentence(error)
        if sentence is None:
            raise
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) went away; a second complaint at exit would be noise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        sentence = f'{error.filename}: {error.strerror}; give a path that can be used.'
    print(f'spear {chosen}: {sentence}', file=sys.stderr)
    return USER_ERROR


if __name__ == '__main__':
    sys.exit(main())
