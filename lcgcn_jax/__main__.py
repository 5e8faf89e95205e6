"""`python -m lcgcn_jax`: the command `lcgcn`, where its script is not on the path."""

import sys

from lcgcn_jax.commands.main import main

sys.exit(main())
