"""`python -m audiolm_cli` is `audiolm`."""

import sys

from audiolm_cli.command_line.cli import main

if __name__ == "__main__":
    sys.exit(main())
