"""Names of version 0.1 in stored configurations, weights and commands, mapped to current names.

Bundles, checkpoints and run configurations of version 0.1 still load, and its command-line options
still work.
"""

from collections.abc import Mapping
from typing import Any

from lcgcn_jax.errors import InputError

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

_MESSAGES = {"offsets": "offset_votes"}
_MESSAGE_FIELD = "model.graph.message"
_PAPER_CONVENTIONS = {
    "activation": "relu",
    "mlp_output": "linear",
    "positions": "center",
    "shape_features": "all",
}
_AUTHORS_CONVENTIONS = {
    "activation": "none",
    "mlp_output": "activated",
    "positions": "corner",
    "shape_features": "first_last",
}
"""Former fields of `model.graph` that `authors_conventions` replaces: their values in the paper and in
the code of its authors."""

_WEIGHT_NAMES = {
    # Old and new names sort alike, so vectors of all weights (`models.weights.to_vector`) stay valid.
    "guesses": "offset_voting",
    "shape_turn": "shape_refiner",
    "neighbour": "neighbor",
    "own": "node",
}
"""Former parts of the names of weights of the graph."""

OPTIONS = {
    "--degrade": "--corruption",
    "--compare-published": "--compare-reported",
    "--max-spread": "--max-ratio",
}
"""Former names of command-line options."""

CORRUPTIONS = {"dark": "low_light"}
"""Former names of values of `--corruption`."""


def upgrade_corruption(name: str) -> str:
    """Convert a value of `--corruption` to the current name."""
    return CORRUPTIONS.get(name, name)


def upgrade_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the configuration of a bundle or run, including nested fields, to current names.

    Raises:
      InputError: the graph has some conventions of the paper and some of the authors' code.
    """
    fields = _CONFIG_FIELDS | (_DAG_FIELDS if config.get("name") == "dag" else {})
    # Former names last: a config file that sets one also has the default of the current name.
    upgraded = {
        # No option of a heatmap model has been renamed, and registered models have their own.
        fields.get(name, name): upgrade_config(value)
        if isinstance(value, Mapping) and name != "heatmap"
        else value
        for name, value in sorted(config.items(), key=lambda item: item[0] in fields)
    }
    graph = upgraded.get("graph")
    if isinstance(graph, dict) and graph.get("name") != "dag":
        upgraded["graph"] = _upgrade_graph(graph)
    return upgraded


def _upgrade_graph(graph: dict[str, Any]) -> dict[str, Any]:
    conventions = {name: graph[name] for name in _PAPER_CONVENTIONS if name in graph}
    upgraded = {name: value for name, value in graph.items() if name not in conventions}
    if "message" in graph:
        upgraded["message"] = _MESSAGES.get(graph["message"], graph["message"])
    if conventions:
        upgraded["authors_conventions"] = _are_of_the_authors(conventions)
    return upgraded


def _are_of_the_authors(conventions: Mapping[str, str]) -> bool:
    """Whether former fields of the graph are those of the authors' code; missing ones are the paper's."""
    conventions = {**_PAPER_CONVENTIONS, **conventions}
    if conventions not in (_PAPER_CONVENTIONS, _AUTHORS_CONVENTIONS):
        raise InputError(
            f"model.graph: {conventions} mixes conventions of the paper and of its authors' code, which "
            "this version does not support; use version 0.1"
        )
    return conventions == _AUTHORS_CONVENTIONS


def upgrade_weights(tree: Any) -> Any:
    """Rename weights in a tree of mappings by flat name to current names."""
    return _rename(tree, _WEIGHT_NAMES)


def downgrade_weights(tree: Any, saved: Any) -> Any:
    """Rename weights to former names, to describe the content of an older checkpoint.

    Args:
      tree: tree with current names.
      saved: content of the checkpoint, whose former names are used.
    """
    return _rename(tree, {_WEIGHT_NAMES[old]: old for old in _former_names(saved)})


def has_former_weights(tree: Any) -> bool:
    """Whether a tree has weights with former names."""
    return bool(_former_names(tree))


def _former_names(tree: Any) -> set[str]:
    """Keys of `_WEIGHT_NAMES` that occur in the names of a tree."""
    if isinstance(tree, Mapping):
        parts = {part for name in map(str, tree) if _of_graph(name) for part in name.split(".")}
        names = parts & _WEIGHT_NAMES.keys()
        return names.union(*map(_former_names, tree.values()))
    return set().union(*map(_former_names, tree)) if isinstance(tree, list | tuple) else set()


def _rename(tree: Any, names: Mapping[str, str]) -> Any:
    if isinstance(tree, Mapping):
        return {_renamed(name, names): _rename(value, names) for name, value in tree.items()}
    # A named tuple, such as a state of optax.
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_rename(value, names) for value in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(_rename(value, names) for value in tree)
    return tree


def _renamed(name: Any, names: Mapping[str, str]) -> Any:
    if not _of_graph(str(name)):
        return name
    return ".".join(names.get(part, part) for part in name.split("."))


def _of_graph(name: str) -> bool:
    """Whether this is the name of a weight of the graph; those of heatmap models were never renamed."""
    return name.startswith("graph.")


def upgrade_overrides(overrides: Mapping[str, str]) -> dict[str, str]:
    """Convert command-line overrides of configuration fields (`a.b.c`: text) to current names.

    Raises:
      InputError: as in `upgrade_config`.
    """
    upgraded = {_upgrade_field(name): text for name, text in overrides.items()}
    if _MESSAGE_FIELD in upgraded:
        message = upgraded[_MESSAGE_FIELD]
        upgraded[_MESSAGE_FIELD] = _MESSAGES.get(message, message)
    names = {f"model.graph.{name}": name for name in _PAPER_CONVENTIONS}
    conventions = {names[name]: upgraded.pop(name) for name in names.keys() & upgraded.keys()}
    if conventions:
        is_of_the_authors = _are_of_the_authors(conventions)
        upgraded["model.graph.authors_conventions"] = str(is_of_the_authors).lower()
    return upgraded


def _upgrade_field(name: str) -> str:
    if name.startswith("model.heatmap."):
        return name
    fields = _CONFIG_FIELDS | (_DAG_FIELDS if name.startswith("model.graph.") else {})
    return ".".join(fields.get(part, part) for part in name.split("."))


def upgrade_arguments(arguments: list[str], known: set[str]) -> list[str]:
    """Convert command-line arguments to current option names.

    Args:
      arguments: words of a command line. Options with underscores (`--flip_test`) get dashes if only that
        spelling is known, and renamed options their new name.
    """
    upgraded: list[str] = []
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
