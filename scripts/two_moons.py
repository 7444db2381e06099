"""Draw the connections of each labeler on two moons; without arguments it says how."""

import sys

from scarcely.two_moons import main

if __name__ == "__main__":
    sys.exit(main())
