"""Run what is missing of the papers' tables and write down what was found; without arguments the digits."""

import sys

from scarcely.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
