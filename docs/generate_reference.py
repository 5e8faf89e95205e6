"""MkDocs hook: generates the pages of the command line and of the config fields from the code."""

import argparse
import dataclasses
import importlib
import inspect
import os
import re
from collections.abc import Iterator, Mapping

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_WIDTH = 80


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
    """Page with all fields of a config: defaults, and their meaning from the dataclasses."""
    from lcgcn_jax.data.augment import AugmentConfig
    from lcgcn_jax.models.cascade import CascadeConfig
    from lcgcn_jax.models.lcgcn import GraphConfig
    from lcgcn_jax.models.visibility import VisibilityConfig
    from lcgcn_jax.training import config_types
    from lcgcn_jax.training.config import config_names

    sections = [
        "# Config fields",
        "Set any field with `--config.NAME=VALUE`, or in a config file. Generated from the code. The ranges "
        "of the fields are in `lcgcn_jax/training/config_checks.py`.",
        f"Configs of the project: {', '.join(f'`{name}`' for name in config_names())}.",
    ]
    options = {
        "Run": config_types.Config,
        "data": config_types.DataConfig,
        "data.augment": AugmentConfig,
        "model": config_types.ModelConfig,
        "model.graph with name lcgcn": GraphConfig,
        "model.graph with name dag": CascadeConfig,
        "model.visibility": VisibilityConfig,
        "loss": config_types.LossConfig,
        "optimizer": config_types.OptimizerConfig,
        "optimizer.learning_rate": config_types.LearningRates,
        "train": config_types.TrainConfig,
    }
    sections += [_dataclass(title, option) for title, option in options.items()]
    return "\n\n".join(sections) + "\n"


def _dataclass(title: str, option: type) -> str:
    """Table of a dataclass: its fields, defaults, and their text in the docstring."""
    summary = (inspect.getdoc(option) or "").partition("Attributes:")[0]
    docs = [inspect.getdoc(parent) or "" for parent in option.__mro__[-2::-1]]
    attributes = "\n".join(doc.partition("Attributes:")[2] for doc in docs)
    entries = re.split(r"\n  (?=\w+: )", "\n" + inspect.cleandoc(attributes).replace("\n", "\n  "))
    meaning = {
        name: " ".join(body.split())
        for name, _, body in (entry.strip().partition(": ") for entry in entries)
    }
    rows = []
    for field in dataclasses.fields(option):
        default = _default(field)
        rows.append(
            f"| `{field.name}` | {default} | {meaning.get(field.name, '')} |".replace("\n", " ")
        )
    table = "\n".join(["| field | default | meaning |", "|---|---|---|", *rows])
    return f"## {title}\n\n{summary.strip()}\n\n{table}"


def _default(field: dataclasses.Field) -> str:
    """Default of a field; empty for a group of fields in another table."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING or dataclasses.is_dataclass(value):
        return ""
    if isinstance(value, Mapping) and {"connectivity", "head"} & value.keys():  # in separate tables
        return ""
    return f"`{value!r}`"
