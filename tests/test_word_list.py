"""Words that this project replaces by the terms of the field (see CONTRIBUTING.md)."""

import io
import json
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# In docstrings, comments, messages, help texts and documentation.
PHRASES = {
    r"(?:m)(?:end)(?:s|ed|ing)?": "fix, correct",
    r"told|said": "reported, described",
    r"what (is|was|it) sa(id|ys)": "the message",
    r"go(es|ing)? on": "resume, continue",
    r"begin(s|ning)? (anew|with)": "restart, start with",
    r"for\s+want\s+of": "because there is no",
    r"st(and|ands|ood|anding) (in|under|beside|behind|there|for)": "is in, is below, replaces",
    r"that (is|are) there": "existing",
    r"as (it|they) (is|are)": "unchanged",
    r"of (its|their|your|his|our) own": "its, separate, custom",
    r"surest": "most confident",
    r"whose\s+like": "similar to which",
    r"nothing\s+but": "only",
    r"all the same": "identical, still",
    r"in the place of": "instead of",
    r"photographs?": "image",
    r"pictures?": "image, plot",
    r"speaks?|spoken": "affects, supports",
    r"listen(s|ed|er|ers|ing)?": "receive, target node",
    r"needles?": "edge line",
    r"evidence": "graph inputs, cached features",
    r"guess(es)?": "vote, estimate",
    r"shape turns?|last turn|turns? (of|after|behind) (the|a) (graph|model|first)": "refinement stage",
    r"own points": "custom landmarks",
    r"covered faces?": "occluded faces",
    r"damages?|degrad(e|es|ed|ation|ations)": "corruption",
    r"darkness": "low light",
    r"lean(s|ing)?": "bias",
    r"heatmap cells?|cells of (the|a) heatmap": "heatmap pixels",
    r"the house": "the project",
    r"colours?|coloured|centres?|centred|neighbours?|grey|behaviours?|licence|favour": "American spelling",
    r"trembl\w*": "jitter",
    r"alone": "only",
    r"anew": "again",
    r"beside": "next to, with",
}

# Parts of identifiers: `shape_turn` has the parts `shape` and `turn`.
PARTS = {
    "turn": "stage", "turns": "stages", "evidence": "graph_inputs", "guess": "vote", "guesses": "votes",
    "damage": "corruption",
    "damages": "corruptions", "degrade": "corruption", "degradations": "corruptions", "darkness": "low_light",
    "photograph": "image", "photographs": "images", "picture": "image", "pictures": "images",
    "lean": "flip_bias",
    "heat": "heatmap", "cells": "heatmap_pixels", "spread": "heatmap_std", "agreed": "raise_on_all_processes",
    "init_parts": "init_scope", "begins": "starts", "claim": "RunLock", "adopt": "write_config",
    "published": "reported", "listeners": "targets", "listens": "targets", "needle": "edge_line",
    "needles": "edge_lines", "exchanges": "collectives", "colour": "color", "colours": "colors",
    "centre": "center", "centres": "centers", "neighbour": "neighbor", "neighbours": "neighbors",
}  # fmt: skip

# Whole identifiers: participles and adverbs that do not say what they hold.
NAMES = {
    "found", "kept", "given", "there", "said", "wanted", "about", "own", "Row", "PARTS", "expected_error",
}  # fmt: skip

EXEMPT_NAMES = {
    ("expected_error", "lcgcn_jax/inference/face.py"),  # former name of `predicted_error`, still read
    ("given", "tests/test_geometry.py"),  # of hypothesis
    ("given", "tests/test_heatmaps.py"),
    ("Row", "lcgcn_jax/app/page.py"),  # of Gradio
}  # fmt: skip

# Identifiers whose parts have another meaning: rotations by 90 degrees, and cells of notebooks and tables.
OTHER_MEANINGS = {"quarter_turn", "quarter_turns"}
FILES_WITH_CELLS = re.compile("notebook|csv|parsing|table|word_list|documentation")

# Former spellings that are still read, and the history.
EXEMPT = {
    "CHANGELOG.md", "lcgcn_jax/compat.py", "tests/test_compat.py", "tests/test_word_list.py",
}  # fmt: skip
SUFFIXES = {".py", ".md", ".ipynb", ".toml", ".yml", ".yaml", ".sh", ".cff", ".h", ".cc"}


def _is_checked(name: str) -> bool:
    return Path(name).suffix in SUFFIXES and name not in EXEMPT


def _tracked_files() -> list[str]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = listing.stdout.splitlines() or [
        str(path.relative_to(ROOT))
        for folder in ("lcgcn_jax", "tests", "docs")
        for path in (ROOT / folder).rglob("*")
    ]
    return [name for name in names if _is_checked(name) and (ROOT / name).is_file()]


FILES = _tracked_files()


def _prose(path: Path) -> str:
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text())["cells"]
        return "\n".join(line for cell in cells for line in "".join(cell["source"]).splitlines())
    return path.read_text()


def _identifiers(path: Path):
    with io.StringIO(path.read_text()) as source:
        for token in tokenize.generate_tokens(source.readline):
            if token.type == tokenize.NAME:
                yield token.start[0], token.string


def _parts(identifier: str) -> set[str]:
    return set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", identifier).lower().split("_"))


@pytest.mark.parametrize("name", FILES)
def test_text_uses_the_terms_of_the_field(name):
    text = _prose(ROOT / name)
    findings = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: '{match.group()}'; write {replacement}"
        for phrase, replacement in PHRASES.items()
        for match in re.finditer(rf"(?<![\w./-])(?:{phrase})(?![\w/-])", text, re.IGNORECASE)
    ]
    assert not findings, "\n".join(findings)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".py")])
def test_identifiers_are_terms_of_the_field(name):
    findings = [f"{name}: the file name" for part in _parts(Path(name).stem) if part in PARTS]
    for line, identifier in _identifiers(ROOT / name):
        if identifier in OTHER_MEANINGS:
            continue
        for part in sorted(_parts(identifier) & PARTS.keys()):
            if part == "cells" and FILES_WITH_CELLS.search(name):
                continue
            findings.append(f"{name}:{line}: '{identifier}'; write {PARTS[part]}")
        if identifier in NAMES and (identifier, name) not in EXEMPT_NAMES:
            findings.append(f"{name}:{line}: '{identifier}'; write a noun that says what it holds")
    assert not findings, "\n".join(findings)
