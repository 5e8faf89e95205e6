"""Names of version 0.1 in stored configurations, weights and commands, mapped to today's names.

Bundles, checkpoints and run configurations written by version 0.1 still load, and its command-line options
still work.
"""

from collections.abc import Mapping
from typing import Any

_CONFIG_FIELDS = {
    "calibration": "uncertainty",
    "darkness": "low_light",
    "darkness_factor": "low_light_factor",
    "heatmap_origin": "heatmap_offset",
    "init_parts": "init_scope",
    "mirror_offset": "flip_bias",
    "shape_turn": "shape_refiner",
    "spread_weight": "std_weight",
}
_DAG_FIELDS = {"turns": "fine_steps"}
_WEIGHT_NAMES = {
    # Sorted, both orders are the same, so vectors of all weights (`models.weights.to_vector`) need no change.
    "graph.guesses.": "graph.offset_voting.",
    "graph.shape_turn.": "graph.shape_refiner.",
    ".neighbour": ".neighbor",
}

OPTIONS = {"--degrade": "--corruption", "--compare-published": "--compare-reported"}
"""Former names of command-line options."""

CORRUPTIONS = {"dark": "low_light"}
"""Former names of values of `--corruption`."""


def upgrade_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A bundle's or run's configuration with today's field names, nested ones included."""
    fields = _CONFIG_FIELDS | (_DAG_FIELDS if config.get("name") == "dag" else {})
    return {
        fields.get(name, name): upgrade_config(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
    }


def upgrade_weights(tree: Any) -> Any:
    """A tree in which weights are under their flat names, under today's names."""
    return _rename(tree, _WEIGHT_NAMES)


def downgrade_weights(tree: Any) -> Any:
    """The opposite of `upgrade_weights`, to describe the content of an older checkpoint."""
    return _rename(tree, {new: old for old, new in _WEIGHT_NAMES.items()})


def has_former_weights(tree: Any) -> bool:
    """Whether a tree has weights under former names."""
    if isinstance(tree, Mapping):
        return any(
            any(former in str(name) for former in _WEIGHT_NAMES) or has_former_weights(value)
            for name, value in tree.items()
        )
    return isinstance(tree, list | tuple) and any(map(has_former_weights, tree))


def _rename(tree: Any, names: Mapping[str, str]) -> Any:
    if isinstance(tree, Mapping):
        return {_renamed(name, names): _rename(value, names) for name, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):  # a state of optax
        return type(tree)(*(_rename(value, names) for value in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(_rename(value, names) for value in tree)
    return tree


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(old, new)
    return name


def upgrade_overrides(overrides: Mapping[str, str]) -> dict[str, str]:
    """Command-line settings of configuration fields (`a.b.c`: text) with today's field names."""
    return {
        ".".join((_CONFIG_FIELDS | _DAG_FIELDS).get(part, part) for part in name.split(".")): text
        for name, text in overrides.items()
    }


def upgrade_arguments(arguments: list[str], known: set[str]) -> list[str]:
    """Command-line arguments with today's option names.

    Args:
      arguments: words of a command line; an option with underscores (`--flip_test`) gets dashes where
        only that spelling is known, a renamed one its new name.
      known: today's options.
    """
    upgraded = []
    for i, word in enumerate(arguments):
        if word == "--":
            return upgraded + arguments[i:]
        option, equals, value = word.partition("=")
        if option.startswith("--") and option not in known:
            dashed = option.replace("_", "-")
            dashed = OPTIONS.get(dashed, dashed)
            if dashed in known:
                word = dashed + equals + value
        upgraded.append(word)
    return upgraded
