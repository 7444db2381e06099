"""Run what is missing of the tables of results, and write down what was found."""

import sys

from scarcely.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
