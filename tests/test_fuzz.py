"""A minute of the fuzzer: nothing but results that keep their counts, and the project's own errors."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_minute_of_spoilt_inputs(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), "--seconds", "60", "--keep", str(tmp_path / "kept")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    kept = [path.read_text()[-2000:] for path in sorted(tmp_path.glob("kept/*.txt"))[:3]]
    assert done.returncode == 0, "\n".join([done.stdout, done.stderr[-2000:], *kept])
