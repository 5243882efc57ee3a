"""`python -m audiolm_cli` is `audiolm`."""

import sys

from audiolm_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
