"""`python -m lcgcn_jax`, equivalent to the command `lcgcn`."""

import sys

from lcgcn_jax.commands.main import main

sys.exit(main())
