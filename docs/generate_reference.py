"""MkDocs hook: generates the reference pages of the command line and the config fields."""

import argparse
import dataclasses
import inspect
import os
import re
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_WIDTH = 80  # of the help texts, in characters
_LONGEST_DEFAULT = 100


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    pages = {"reference/cli.md": command_line(), "reference/config.md": config_fields()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def command_line() -> str:
    """Page with the help of every subcommand, from its parser."""
    from lcgcn_jax.commands.parsing import COMMANDS, RESEARCH, build_parser

    os.environ["COLUMNS"] = str(_WIDTH)  # argparse wraps to it
    commands = dict(_subcommands(build_parser([*COMMANDS, *RESEARCH])))
    sections = ["# Command line", "Generated from the argument parsers of `lcgcn`.", ""]
    sections += ["| command | purpose |", "|---|---|"]
    for name, parser in commands.items():
        summary = (parser.description or "").partition("\n")[0]
        sections.append(f"| [`{name}`](#lcgcn-{name}) | {summary} |")
    for name, parser in commands.items():
        sections += _help(f"lcgcn {name}", parser, level=2)
    return "\n".join(sections) + "\n"


def _help(title: str, parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    yield f"\n{'#' * level} {title}\n\n```text\n{parser.format_help().strip()}\n```"
    for name, child in _subcommands(parser):
        yield from _help(f"{title} {name}", child, level + 1)


def _subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def config_fields() -> str:
    """Page with all fields of a config, their defaults and their meaning."""
    from lcgcn_jax.data.augment import AugmentConfig
    from lcgcn_jax.models.config import CascadeConfig, GraphConfig, VisibilityConfig
    from lcgcn_jax.training import config_types as types
    from lcgcn_jax.training.config import config_names

    classes = [
        ("Run", "", types.Config),
        ("Data", "data.", types.DataConfig),
        ("Augmentation", "data.augment.", AugmentConfig),
        ("Model", "model.", types.ModelConfig),
        ("Graph lcgcn", "model.graph.", GraphConfig),
        ("Graph dag", "model.graph.", CascadeConfig),
        ("Visibility head", "model.visibility.", VisibilityConfig),
        ("Loss", "loss.", types.LossConfig),
        ("Optimizer", "optimizer.", types.OptimizerConfig),
        ("Learning rates", "optimizer.learning_rate.", types.LearningRates),
        ("Training", "train.", types.TrainConfig),
    ]
    sections = [
        "# Config fields",
        "Set a field with `--config.NAME=VALUE`, or in a config file. The defaults are those of the "
        "paper. This page is generated from the code.",
        f"Configs of the project: {', '.join(f'`{name}`' for name in config_names())}.",
    ]
    sections += [_fields(*section) for section in classes]
    return "\n\n".join(sections) + "\n"


def _fields(title: str, prefix: str, config: type) -> str:
    """Section with the fields of a dataclass, their defaults, and their text in its docstring."""
    from lcgcn_jax.fields import constraints_of

    summary = (inspect.getdoc(config) or "").partition("Attributes:")[0]
    docs = [inspect.getdoc(parent) or "" for parent in config.__mro__[-2::-1]]
    attributes = "\n".join(doc.partition("Attributes:")[2] for doc in docs)
    entries = re.split(r"\n  (?=\w+: )", "\n" + inspect.cleandoc(attributes).replace("\n", "\n  "))
    meaning = {
        name: " ".join(body.split())
        for name, _, body in (entry.strip().partition(": ") for entry in entries)
    }
    items = []
    constraints = constraints_of(config)
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(field.type):
            continue  # has a section
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        text = "required" if default is dataclasses.MISSING else f"default `{default!r}`"
        if len(text) > _LONGEST_DEFAULT:
            text = "default below"
        if field.name in constraints:
            text += f"; {constraints[field.name].text}"
        items.append(f"- **`{prefix}{field.name}`** ({text}) – {meaning.get(field.name, '')}")
    return f"## {title}\n\n{summary.strip()}\n\n" + "\n".join(items)
