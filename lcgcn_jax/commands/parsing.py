"""Argument parsers of `lcgcn` and its subcommands."""

import argparse
import ast
import importlib
from collections.abc import Collection, Sequence
from pathlib import Path

from lcgcn_jax.arguments import Parser
from lcgcn_jax.errors import did_you_mean

COMMANDS = (
    "demo", "prepare", "train", "eval", "predict", "models", "app", "visualize", "import-torch",
    "export", "bench", "research",
)  # fmt: skip
RESEARCH = ("ablation", "fit-shape", "fit-offsets", "calibrate", "calibrate-detector", "compile")
"""Subcommands of `lcgcn research`; `lcgcn NAME` without `research` works too."""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the words after `lcgcn`; exits if they are wrong or ask for help.

    Returns:
      The options of the subcommand; `run`, its function; and `overrides`, the words that set config fields.
    """
    arguments = list(arguments)
    names = [word for word in arguments if not word.startswith("-")][:2]
    if names and names[0] in RESEARCH:
        arguments.insert(arguments.index(names[0]), "research")
        names.insert(0, "research")
    names = names[:2] if names[:1] == ["research"] else names[:1]
    parser = build_parser(names)
    for name, known in zip(names, ((*COMMANDS, *RESEARCH), RESEARCH), strict=False):
        if name not in known:
            parser.error(f"unknown command {name!r}{did_you_mean(name, known, cutoff=0.0)}")
    args, overrides = parser.parse_known_args(arguments)
    if overrides and not args.has_overrides:
        parser.error(f"unrecognized: {' '.join(overrides)}")
    args.overrides = overrides
    return args


def build_parser(names: Collection[str]) -> Parser:
    """Build the parser of `lcgcn` with the options of some subcommands.

    The others are only listed, because importing their modules may start JAX.
    """
    parser = Parser(
        prog="lcgcn",
        description="Facial landmark detection with LCGCN, in JAX.",
        epilog="'lcgcn COMMAND --help' shows the options of a command.\nexample: lcgcn predict photo.jpg",
    )
    parser.set_defaults(has_overrides=False)
    _add_commands(parser, COMMANDS, names, "")
    return parser


def _add_commands(
    parser: Parser, commands: Sequence[str], names: Collection[str], package: str
) -> None:
    children = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in commands:
        module = package + command.replace("-", "_")
        summary, _, text = _read_docstring(module).partition("\n\n")
        description, _, example = text.partition("\n\nExample")
        child = children.add_parser(
            command,
            help=summary.rstrip(".").replace("%", "%%"),
            description=f"{summary}\n\n{description}".strip(),
            epilog=f"example{example}" if example else None,
        )
        if command == "research":
            _add_commands(child, RESEARCH, names, "research.")
        elif command in names:
            implementation = importlib.import_module(f"lcgcn_jax.commands.{module}")
            child.set_defaults(run=implementation.run)
            implementation.add_arguments(child)


def _read_docstring(module: str) -> str:
    """Read the docstring of a command's module without importing it."""
    path = Path(__file__).parent / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
