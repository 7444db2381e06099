"""Write a trained network as torch.export and ONNX programs; without arguments it tells how."""

import sys

from scarcely.export import main

if __name__ == "__main__":
    sys.exit(main())
