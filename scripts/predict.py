"""Name the clusters of a folder of images; without arguments it says how."""

import sys

from scarcely.predict import main

if __name__ == "__main__":
    sys.exit(main())
