"""Annotation formats of labeling tools."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lcgcn_jax.data.formats.identify import identify_format, require_format

__all__ = ["AnnotationPaths", "each_file", "identify_format", "require_format"]

AnnotationPaths = Mapping[str, Path | Sequence[Path]]
"""One or several annotation files of each split; those under `raw_faces.UNSTATED` have no stated split."""


def each_file(files: AnnotationPaths) -> Iterator[tuple[str, Path]]:
    """Yield each annotation file with its split."""
    for split, paths in files.items():
        for path in [paths] if isinstance(paths, Path) else paths:
            yield split, path
