"""Timing, roofline bounds, and compilation for TPUs."""
