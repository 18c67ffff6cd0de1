"""`python3 -m scripts.make_delta` is `gpt4roi make-delta`."""

import sys

from gpt4roi.cli import main

if __name__ == "__main__":
    sys.exit(main(["make-delta", *sys.argv[1:]]))
