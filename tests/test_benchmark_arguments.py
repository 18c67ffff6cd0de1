"""Benchmarks refuse what cannot be measured before they measure anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("-m benchmarks.run --quick --threads 0", "--threads: expected a whole number from 1 on, got '0'"),
        ("-m benchmarks.run nothing", "no benchmark 'nothing'; there are annotation_index"),
        ("benchmarks/startup.py --quick --json nowhere/rows.json", "--json: no folder nowhere"),
        ("benchmarks/startup.py --threads few", "--threads: expected a whole number from 1 on, got 'few'"),
    ],
)
def test_a_wrong_argument_ends_in_one_line_after_the_usage(command, message):
    done = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
