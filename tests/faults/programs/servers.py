"""A job on a quadratic as `least_squares.py` takes it, in which ranks stop or send nonsense in the middle of a step.

"faults" names them by rank, each at the sending of the message of number `after` of a `kind`, or of those `to` a rank
alone: {"stop": true} stops the process as SIGSTOP does; {"full": true} lets it write no more files, as on a full disk;
otherwise `times` messages go before the right one, changed in their "tag", "round" (a difference), "length" (as
announced), "cut" (to so many bytes), "payload" (a text) or "zeros" (so many bytes of payload).
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "servers"))

import least_squares
import numpy as np
from mpi4py import MPI

from hvd_compress.parameter_server.runtime.messages import HEADER, NOTHING, Endpoint, Kind


class Faulty(Endpoint):
    """The endpoint of a rank with a fault."""

    fault: dict

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.left = self.fault.get("after", 1)

    def send(self, to, kind, round, number=0, payload=NOTHING):
        if kind == Kind[self.fault["kind"]] and to == self.fault.get("to", to):
            self.left -= 1
            if self.left == 0:
                self.strike(to, kind, round, number, payload)
        super().send(to, kind, round, number, payload)

    def strike(self, to, kind, round, number, payload):
        fault = self.fault
        if fault.get("stop"):
            os.kill(os.getpid(), signal.SIGSTOP)
            return
        if fault.get("full"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        body = payload.tobytes()
        if "payload" in fault or "zeros" in fault:
            body = fault.get("payload", "").encode() + bytes(fault.get("zeros", 0))
        head = HEADER.pack(round + fault.get("round", 0), number, fault.get("length", len(body)))
        sent = np.frombuffer((head + body)[: fault.get("cut")], np.uint8)
        for _ in range(fault.get("times", 1)):
            self._sending.append((self.comm.Isend([sent, MPI.BYTE], to, fault.get("tag", int(kind))), sent))


def main():
    import hvd_compress.parameter_server.runtime.job as job

    fault = json.loads(sys.argv[1])["faults"].get(str(MPI.COMM_WORLD.Get_rank()))
    if fault is not None:
        Faulty.fault = fault
        job.Endpoint = Faulty
    least_squares.main()


if __name__ == "__main__":
    main()
