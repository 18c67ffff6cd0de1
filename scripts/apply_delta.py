"""`python3 -m scripts.apply_delta` is `gpt4roi apply-delta`."""

import sys

from gpt4roi.cli import main

if __name__ == "__main__":
    sys.exit(main(["apply-delta", *sys.argv[1:]]))
