"""Write one page over many runs, or the report of one run again; without arguments it says how."""

import sys

from scarcely.reports.index import main

if __name__ == "__main__":
    sys.exit(main())
