"""`python -m lsvcr` is the `lsvcr` command."""

import sys

from lsvcr.cli import main

if __name__ == "__main__":
    sys.exit(main())
