"""Draw a figure of several runs; without arguments it says how."""

import sys

from scarcely.reports.compare import main

if __name__ == "__main__":
    sys.exit(main())
