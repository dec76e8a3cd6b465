"""python -m imgstore: see `imgstore.command`."""

import sys

from imgstore.command.main import main

if __name__ == "__main__":
    sys.exit(main())
