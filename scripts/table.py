"""Write any set of runs as one table; without arguments it says how."""

import sys

from scarcely.reports.run_table import main

if __name__ == "__main__":
    sys.exit(main())
