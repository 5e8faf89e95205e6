"""Entry point of the command `lcgcn`."""

import sys
from collections.abc import Sequence

from lcgcn_jax.allocator import restart_with_tcmalloc
from lcgcn_jax.commands.parsing import RESEARCH, build_parser, parse_arguments
from lcgcn_jax.exit_codes import exit_code_of
from lcgcn_jax.terminal import set_up_output


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lcgcn`.

    Returns:
      Exit code: 0; 1 if inputs were skipped; or that of an error (`exit_code_of`).
    """
    if arguments is None and {"train", "demo", "bench", "research", *RESEARCH} & set(sys.argv[1:2]):
        restart_with_tcmalloc()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    set_up_output()
    if not arguments:
        build_parser(()).print_help(sys.stderr)
        return 2

    def run() -> int:
        args = parse_arguments(arguments)
        return args.run(args)

    return exit_code_of(run)
