"""Measure speed against plain implementations; ``--help`` shows the settings."""

import sys

from scarcely.bench.command import main

if __name__ == "__main__":
    sys.exit(main())
