"""MkDocs hook: generates the pages of the command line and of the config fields from the code."""

import argparse
import dataclasses
import importlib
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_WIDTH = 92


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    pages = {"reference/cli.md": command_line(), "reference/config.md": config_fields()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def command_line() -> str:
    """Page with the help of every subcommand, from its parser."""
    from lcgcn_jax.commands.main import COMMANDS

    os.environ["COLUMNS"] = str(_WIDTH)  # argparse wraps to it
    parser = argparse.ArgumentParser(prog="lcgcn")
    subparsers = parser.add_subparsers()
    sections = ["# Command line", "Generated from the argument parsers of `lcgcn`.", ""]
    sections += ["| command | purpose |", "|---|---|"]
    sections += [f"| [`{name}`](#lcgcn-{name}) | {text} |" for name, text in COMMANDS.items()]
    for name in COMMANDS:
        importlib.import_module(f"lcgcn_jax.commands.{name.replace('-', '_')}").add_parser(
            subparsers
        )
        sections += list(_help(f"lcgcn {name}", subparsers.choices[name], level=2))
    return "\n".join(sections) + "\n"


def _help(title: str, parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    yield f"\n{'#' * level} {title}\n\n```text\n{parser.format_help().strip()}\n```"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from _help(f"{title} {name}", child, level + 1)


def config_fields() -> str:
    """Page with all fields of a config and their defaults, and the options of augmentation and graphs."""
    from lcgcn_jax.data.augment import AugmentConfig
    from lcgcn_jax.models.config import CascadeConfig, GraphConfig
    from lcgcn_jax.training.config import config_names, default_config

    config = default_config()
    rows = [f"| `{name}` | `{value!r}` |" for name, value in _flat(config.to_dict())]
    sections = [
        "# Config fields",
        "Set any field with `--config.NAME=VALUE`, or in a config file. Generated from the code.",
        f"Configs of the project: {', '.join(f'`{name}`' for name in config_names())}.",
        "## Meaning",
        inspect.getdoc(default_config) or "",
        "## Defaults",
        "| field | default |\n|---|---|\n" + "\n".join(rows),
    ]
    options = {
        "data.augment": AugmentConfig,
        "model.graph with name lcgcn": GraphConfig,
        "model.graph with name dag": CascadeConfig,
    }
    sections += [_dataclass(title, option) for title, option in options.items()]
    return "\n\n".join(sections) + "\n"


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _dataclass(title: str, option: type) -> str:
    """Table of a dataclass: its fields, defaults, and their text in the docstring."""
    text = inspect.getdoc(option) or ""
    summary, _, attributes = text.partition("Attributes:")
    entries = re.split(r"\n  (?=\w+: )", "\n" + inspect.cleandoc(attributes).replace("\n", "\n  "))
    meaning = {
        name: " ".join(body.split())
        for name, _, body in (entry.strip().partition(": ") for entry in entries)
    }
    rows = []
    for field in dataclasses.fields(option):
        default = "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        rows.append(
            f"| `{field.name}` | {default} | {meaning.get(field.name, '')} |".replace("\n", " ")
        )
    table = "\n".join(["| field | default | meaning |", "|---|---|---|", *rows])
    return f"## {title}\n\n{summary.strip()}\n\n{table}"
