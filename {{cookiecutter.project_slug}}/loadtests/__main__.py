"""`python -m loadtests`. Locust's patches of the standard library come before everything else."""

from __future__ import annotations

import locust  # noqa: F401  # patches sockets and threads for gevent

from loadtests.cli import main

main()
