"""However a command ends, nothing of it stays: no worker, no kernel, no handler."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import nbformat
import psutil
import pytest
import typer
from nbformat.v4 import new_code_cell, new_notebook

from nullrec_lib.cli.common import ENDING, speaks
from nullrec_lib.processes import outcomes

BOUND_S, START_S = 30, 180
ENDLESS = "data: shop-tiny\nmethod: base\nwidth: 16\nnegatives: 8\nepochs: 100000\npatience: 100000\nlr: [0.01, 0.02]\n"


def wait_for(ready, seconds: float = BOUND_S):
    """What `ready` says as soon as that is true, or what it says in the end."""
    end = time.monotonic() + seconds
    while not (answer := ready()) and time.monotonic() < end:
        time.sleep(0.05)
    return answer


def start(folder: Path, *words: str) -> subprocess.Popen:
    """`nullrec` as a program of its own, its messages in a file."""
    with (folder / "messages").open("w") as messages:
        return subprocess.Popen([sys.executable, "-m", "nullrec_lib", *words], cwd=folder, stderr=messages,
                                stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})


def left_after(process: subprocess.Popen, number: int) -> list[psutil.Process]:
    """Descendants that are still there, a while after the signal; then they are ended."""
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, left = psutil.wait_procs(below, timeout=BOUND_S)
    for one in left:
        one.kill()
    process.wait(BOUND_S)
    return left if below else ["there was none to begin with"]


@pytest.mark.parametrize("number, status", [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGHUP, 129),
                                            (signal.SIGINT, 130)])
def test_a_grid_leaves_no_process(number, status, tmp_path, encoder):
    (tmp_path / "endless.yaml").write_text(f"{ENDLESS}encoder: {encoder}\n")
    process = start(tmp_path, "grid", "endless.yaml", "--jobs", "2")
    training = wait_for(lambda: len(list(tmp_path.glob("runs/*/environment.json"))) == 2, START_S)
    assert left_after(process, number) == []
    messages = (tmp_path / "messages").read_text()
    assert training and process.returncode == status, messages
    if number != signal.SIGKILL:  # the system may say something of it, but we cannot
        assert "last whole epoch" in messages.splitlines()[-1] and "Traceback" not in messages


def write_sleeper(path: Path) -> Path:
    """A notebook that says that it runs, and then takes its time."""
    cells = [new_code_cell("data = 'shop'\nreport_dir = ''", metadata={"tags": ["parameters"]}),
             new_code_cell("import time\nfrom pathlib import Path\nPath(report_dir, 'runs').touch()\ntime.sleep(600)")]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.mark.parametrize("number, status", [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_notebooks_leave_no_kernel_and_an_interrupt_is_not_a_failed_notebook(number, status, tmp_path):
    for name in ("01_first", "02_second"):
        write_sleeper(tmp_path / "notebooks" / f"{name}.ipynb")
    process = start(tmp_path, "reproduce", "--data", "shop-tiny", "--name", "x")
    running = wait_for((tmp_path / "reports" / "x" / "runs").exists, START_S)
    assert left_after(process, number) == []
    assert running and process.returncode == status, (tmp_path / "messages").read_text()


def test_a_kernel_that_has_hardly_started_ends_with_its_parent(tmp_path):
    """Its parent is gone before it could look for it."""
    script = ("import os, subprocess, sys\n"
              "kernel = subprocess.Popen([sys.executable, '-m', 'nullrec_lib.kernel', '-f', sys.argv[1]],\n"
              "                          env=os.environ | {'JPY_PARENT_PID': str(os.getpid())},\n"
              "                          stdin=subprocess.DEVNULL,\n"
              "                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
              "print(kernel.pid, flush=True)\nos._exit(0)")
    said = subprocess.run([sys.executable, "-c", script, str(tmp_path / "connection.json")], text=True,
                          stdout=subprocess.PIPE, timeout=BOUND_S)
    assert wait_for(lambda: not psutil.pid_exists(int(said.stdout)))


def sleeps(seconds, folder):
    """Module level, so that a child can import it. Leaves a file of the process's number."""
    (folder / str(os.getpid())).touch()
    time.sleep(seconds)
    return os.getpid()


def test_who_stops_listening_waits_for_nobody_and_leaves_nobody(tmp_path):
    results = outcomes(partial(sleeps, folder=tmp_path), [0, 600, 600], jobs=2)
    next(results)
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [int(file.name) for file in tmp_path.iterdir()]
    results.close()
    assert len(workers) == 2 and wait_for(lambda: not any(map(psutil.pid_exists, workers)))


def test_a_process_of_its_own_can_be_asked_for(tmp_path):
    call = partial(sleeps, folder=tmp_path)
    assert [pid != os.getpid() for _, pid, _ in outcomes(call, [0], jobs=1, apart=True)] == [True]
    assert [pid != os.getpid() for _, pid, _ in outcomes(call, [0], jobs=1)] == [False]


# Handlers


@pytest.mark.parametrize("number", ENDING)
def test_a_command_ends_by_a_signal_with_its_status_and_puts_the_handler_back(number, capsys):
    @speaks
    def command():
        os.kill(os.getpid(), number)
        time.sleep(BOUND_S)

    assert signal.getsignal(number) is signal.SIG_DFL  # no import has set any
    with pytest.raises(typer.Exit) as ended:
        command()
    assert ended.value.exit_code == 128 + number and signal.getsignal(number) is signal.SIG_DFL
    line = capsys.readouterr().err.strip()
    assert signal.Signals(number).name in line and "last whole epoch" in line and "\n" not in line


def test_handlers_of_others_are_left_alone():
    seen = []
    command = speaks(lambda: seen.append([signal.getsignal(number) for number in ENDING]))
    for theirs in (signal.SIG_IGN, lambda *_: None):
        before = [signal.signal(number, theirs) for number in ENDING]
        try:
            command()
            assert seen.pop() == [theirs] * len(ENDING) == [signal.getsignal(number) for number in ENDING]
        finally:
            for number, handler in zip(ENDING, before, strict=True):
                signal.signal(number, handler)


def test_in_another_thread_no_handler_is_set():
    seen = []
    thread = threading.Thread(target=speaks(lambda: seen.extend(signal.getsignal(number) for number in ENDING)))
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL] * len(ENDING)
