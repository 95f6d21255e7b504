"""A notebook's kernel that ends with the process that started it, however and however early that one ends.

ipykernel looks after its parent too, but not before it has started, and then takes for its parent whoever adopted it.
"""

from __future__ import annotations

import os
import runpy
import threading
import time


def _end_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_without, args=(int(os.environ["JPY_PARENT_PID"]),), daemon=True).start()
    runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
