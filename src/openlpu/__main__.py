"""``python -m openlpu``: the command line."""

import sys

from openlpu.cli import main

if __name__ == "__main__":
    sys.exit(main())
