"""`python -m knet` is the command `knet`."""

import sys

from knet_command import main

if __name__ == "__main__":  # and not in processes of a training
    sys.exit(main())
