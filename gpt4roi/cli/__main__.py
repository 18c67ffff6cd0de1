"""`python -m gpt4roi.cli` is the `gpt4roi` command."""

import sys

from gpt4roi.cli import main

if __name__ == "__main__":
    sys.exit(main())
