"""Subcommands of `lcgcn`, one module each: flags, one call into the library, printing.

The docstring of a module is its help: the first line is the summary that `lcgcn --help` lists. Each module
has `add_arguments(parser)`, which adds the options, and `run(args)`, which does the work and returns the exit
code.
"""
