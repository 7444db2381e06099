"""Say where the time of a training step goes, of any method; ``--help`` shows the settings."""

import sys

from scarcely.bench.profile import main

if __name__ == "__main__":
    sys.exit(main())
