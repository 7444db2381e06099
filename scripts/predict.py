"""Name clusters or classes of a folder of images, or map what was looked at; without arguments it tells."""

import sys

from scarcely.predict import main

if __name__ == "__main__":
    sys.exit(main())
