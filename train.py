"""Train: ``python train.py method=lsdc data=digits``; ``python train.py --help`` shows the rest."""

import sys

from scarcely.cli import main

if __name__ == "__main__":
    sys.exit(main())
