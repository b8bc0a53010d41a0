"""A rank that takes steps of one collective each under a watchdog; something befalls rank 1.

`python watchdog_worker.py WHAT` with the variables of a launcher. Short times stand for long ones.
"""

import os
import signal
import sys
import time
from types import SimpleNamespace

import torch
import torch.distributed as dist

from training import distributed, stop
from training.hooks import watchdog

watchdog.BEAT_SECONDS = stop.SAME_SECONDS = 0.1
watchdog.IMPATIENT_SECONDS = watchdog.SILENT_SECONDS = watchdog.GRACE_SECONDS = 2.0


def main(what):
    dist.init_process_group("gloo")
    config = watchdog.Config(step_seconds=1.5 if what in ("hang", "signal") else 30.0)
    wish = stop.Stop(0.0)
    with wish.listening(), watchdog.Watchdog(config, wish) as hook:
        for step in range(1, 6):
            hook.before_step()
            if step == 3 and distributed.rank() == 1:
                befall(what)
            wish_of_rank = torch.tensor(float(wish.is_wished()))
            if step == 3:  # whatever comes from here on, this step does not hear of it
                print(f"rank {distributed.rank()} is in step 3", flush=True)
            wishes = distributed.sum_over_ranks(wish_of_rank)
            hook.on_step(SimpleNamespace(state=SimpleNamespace(step=step)))
            time.sleep(2.0 if what == "signal" and step == 2 else 0)  # another hook
            if wishes:
                break
        print(f"rank {distributed.rank()} ends behind step {step}", flush=True)
    distributed.leave()


def befall(what):
    if what == "mistake":
        raise ValueError("a is 3; it must be 4")
    if what == "error":
        raise KeyError("no such thing\nsecond line")
    if what in ("hang", "wait"):
        time.sleep(60)
    if what == "freeze":  # as a machine that is gone: its connections stay open
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher's copy of the same
        time.sleep(0.3)


if __name__ == "__main__":
    main(sys.argv[-1])  # deepspeed puts its own before it
