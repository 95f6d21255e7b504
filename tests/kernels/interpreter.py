"""Which implementations the tests of a kernel run on, and Triton's interpreter where there is no GPU.

Triton decides once, when it is imported, whether kernels are compiled or interpreted. So a test file's Triton cases
run in a process of their own, with TRITON_INTERPRET=1, CPU tensors and nothing but these cases; one test of the file
starts it. Where there is a GPU, the same cases run there instead, compiled.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

SETTINGS = {"TRITON_INTERPRET": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
"""Of the process that interprets: without the plugins, and without conftest.py, it starts in a few seconds."""

compiling = pytest.mark.skipif(
    INTERPRETING or not importlib.util.find_spec("triton"), reason="needs Triton, and not its interpreter"
)
"""For tests that are no cases of an implementation."""


def implementations(stem: str) -> pytest.MarkDecorator:
    """Parametrises `impl` and `device` over what can run in this process."""
    if INTERPRETING:
        return pytest.mark.parametrize(("impl", "device"), [("triton", "cpu")])
    there = importlib.util.find_spec(f"nullrec_lib.kernels.{stem}_cpu")
    cases = [pytest.param("cpu", "cpu", marks=pytest.mark.skipif(not there, reason=f"there is no {stem}_cpu yet"))]
    if torch.cuda.is_available():
        cases.append(pytest.param("triton", "cuda"))
    return pytest.mark.parametrize(("impl", "device"), cases)


def interpret(file: str) -> None:
    """Run the cases of `file` in Triton's interpreter; fail with what it says if one fails, or if none ran."""
    if torch.cuda.is_available():
        pytest.skip("the same cases run on the GPU")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", "--tb=short", file]
    done = subprocess.run(command, env=os.environ | SETTINGS, capture_output=True, text=True)
    assert done.returncode == 0 and "passed" in done.stdout, (done.stdout + done.stderr)[-6000:]
