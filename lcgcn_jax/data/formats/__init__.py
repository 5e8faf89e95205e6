"""Annotation formats of labeling tools."""

from lcgcn_jax.data.formats.identify import identify_format, require_format

__all__ = ["identify_format", "require_format"]
