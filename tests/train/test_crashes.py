"""A training that is killed at random moments learns what an uninterrupted one learns, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy

SCRIPT = Path(__file__).with_name("crashes.py")


def crash(kills, steps):
    """Runs the crash test in a process of its own, which forks; returns its last line."""
    command = [sys.executable, str(SCRIPT), "--kills", str(kills), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    sys.stdout.write(done.stdout)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_training_killed_twice_has_the_losses_and_weights_of_an_uninterrupted_one():
    facts = crash(kills=2, steps=12)
    assert facts["weights_equal"]
    assert facts["losses"] == facts["equal"] >= 12


@pytest.mark.slow
def test_a_training_killed_twenty_times_has_the_losses_and_weights_of_an_uninterrupted_one():
    facts = crash(kills=20, steps=200)
    assert facts["weights_equal"]
    assert facts["losses"] == facts["equal"] >= 200
