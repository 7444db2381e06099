"""Draw labelers' connections on two moons, or surfaces of the Π-model; without arguments it says how."""

import sys

from scarcely.two_moons import main

if __name__ == "__main__":
    sys.exit(main())
