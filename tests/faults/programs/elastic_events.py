"""What happens in an elastic job: `PROGRAM FOLDER SPEC STEPS SCRIPT`.

SCRIPT is a list of events, as JSON, each before a step: [step, "kill", rank], or [step, "hosts", hosts], which writes
these hosts to FOLDER/hosts, for the launcher's discovery script, and waits until each has a rank. Rank 0 writes a line
for each step to FOLDER/log: step, number of ranks, and a digest of each rank's weights; and a last one with the
accuracy.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

FOLDER, SPEC, STEPS, SCRIPT = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
WAIT_SECONDS = 60.0  # for other workers


def write(hvd, **line):
    """Add a line to the log."""
    if hvd.rank() == 0:
        with (FOLDER / "log").open("a") as log:
            log.write(json.dumps(line) + "\n")


def next_event(state, hvd):
    """Let the next event of this step happen, if there is one; it may end in an interrupt."""
    if state.events >= len(SCRIPT) or SCRIPT[state.events][0] > state.step:
        return
    _, what, given = SCRIPT[state.events]
    if what == "hosts":
        if hvd.rank() == 0:
            (FOLDER / "hosts").write_text("".join(f"{host}:1\n" for host in given))
        began = time.monotonic()
        while hvd.size() != len(given):
            state.check_host_updates()
            time.sleep(0.1)
            assert time.monotonic() - began < WAIT_SECONDS, f"{len(given)} ranks are expected, {hvd.size()} have come"
    state.events += 1
    state.save()
    if what == "kill":
        hvd.allgather_object(0)  # all have saved
        if hvd.rank() == given:
            os.kill(os.getpid(), signal.SIGKILL)
