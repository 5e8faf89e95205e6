"""Package discovery: lcgcn_jax, and the folder configs as lcgcn_jax.configs."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["lcgcn_jax", "lcgcn_jax.*"]), "lcgcn_jax.configs"])
