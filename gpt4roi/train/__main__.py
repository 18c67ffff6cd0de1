"""Entry point of `python -m gpt4roi.train`: exit code 2 and one line for wrong input."""

import logging
import sys

from gpt4roi.errors import InputError
from gpt4roi.train.training import main

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.stderr.write(f"gpt4roi train: error: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write(
            "gpt4roi train: interrupted; rerun with only --output_dir to resume from the last checkpoint\n"
        )
        sys.exit(130)
