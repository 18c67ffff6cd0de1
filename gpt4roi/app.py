"""`python gpt4roi/app.py`: the page, as `gpt4roi demo`; takes the same arguments."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts this file's own folder first, where our `io` would stand before the standard library's.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from gpt4roi.cli import main

    sys.exit(main(["demo", *sys.argv[1:]]))
