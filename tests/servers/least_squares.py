"""A job on a quadratic whose optimum is known: python least_squares.py '{"algorithm": {...}, "settings": {...}}'.

A list of several jobs runs one after another in one start.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

from hvd_compress import Layout
from hvd_compress.parameter_server import Regularizer


class LeastSquares:
    """f_i(x) = (a_i x - b_i)^2 / 2."""

    def __init__(self, a, b, regularizer, name="least squares"):
        self.a, self.b, self.regularizer, self.name = a, b, regularizer, name
        self.layout, self.rows = Layout.flat(a.shape[1]), len(a)

    def initial(self, seed):
        return np.zeros(self.layout.size, np.float32)

    def take(self, rows):
        return LeastSquares(self.a[rows], self.b[rows], self.regularizer)

    def gradient(self, x, rows=None):
        a, b = (self.a, self.b) if rows is None else (self.a[rows], self.b[rows])
        rest = a @ x - b
        return float(np.square(rest, dtype=np.float64).sum()) / 2, rest @ a

    def value(self, x):
        return float(np.square(self.a.astype("f8") @ x - self.b).sum()) / 2

    def smoothness(self, batch):
        return float(np.square(self.a).sum(axis=1).max())

    def right(self, x, index=0, parts=1):
        return None

    def description(self):
        return {"task": self.name, "rows": self.rows, "features": self.layout.size, "dtype": str(self.a.dtype)}

    def optimum(self):
        a, b, l2 = self.a.astype("f8"), self.b.astype("f8"), self.regularizer.l2
        x = np.linalg.solve(a.T @ a / self.rows + l2 * np.eye(self.layout.size), a.T @ b / self.rows)
        return float(np.square(a @ x - b).sum()) / 2 / self.rows + self.regularizer.value(x)


def problem(size=40, rows=400, l2=0.01, condition=1.0):
    random = np.random.default_rng(0)
    scales = np.geomspace(1, condition, size)
    a = random.standard_normal((rows, size)) * scales
    a /= np.linalg.norm(a, axis=1).max()
    b = a @ (random.standard_normal(size) / scales) + 0.1 * random.standard_normal(rows)
    return LeastSquares(a.astype("f4"), b.astype("f4"), Regularizer(0.0, l2))


class Nonsense:
    """A worker's part that sends random bytes after some sensible answers, or raises."""

    def __init__(self, inner, raising):
        self.inner, self.left, self.raising = inner, 20, raising

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def answer(self, x, part, rows):
        self.left -= 1
        if self.raising and not self.left:
            raise RuntimeError("this worker has a bug")
        payloads = self.inner.answer(x, part, rows)
        random = np.random.default_rng(0)
        return payloads if self.left > 0 else [random.integers(0, 256, 31, np.uint8) for _ in payloads]


class Silent:
    def __init__(self):
        self.said = []

    def epoch(self, epoch, optimum):
        self.said.append([epoch.epoch, epoch.objective - optimum, epoch.workers])
        print(f"epoch {epoch.epoch}", file=sys.stderr, flush=True)

    def progress(self, done, steps):
        pass

    def say(self, text):
        print(text, file=sys.stderr, flush=True)


def run(given, comm):
    import hvd_compress.parameter_server as ps

    settings = given["settings"]
    if settings.get("checkpoint"):
        settings["checkpoint"] = Path(settings["checkpoint"])
    kind = getattr(ps, given.get("kind", "DoubleQuantization"))
    rank, console = comm.Get_rank(), Silent()

    if rank in given.get("nonsense", []) or rank in given.get("raising", []):
        sensible, raising = kind.worker_part, rank in given.get("raising", [])

        def worker_part(self, plan, shards, rank):
            return Nonsense(sensible(self, plan, shards, rank), raising)

        kind.worker_part = worker_part

    def load():
        for name in ("SIGKILL", "SIGSTOP"):
            if rank in given.get(name, []):
                os.kill(os.getpid(), getattr(signal, name))
        objective = problem(**given.get("problem", {}))
        if rank in given.get("fewer", []):
            objective = objective.take(np.arange(objective.rows - 7))
        return objective

    result = ps.run(
        kind(**given["algorithm"]), load, ps.Settings(**settings), console, lambda objective: objective.optimum(), comm
    )
    assert not {"horovod", "torch", "tensorflow"} & set(sys.modules)
    if result is not None:
        curve = [gap for _, gap, _ in console.said]
        print(json.dumps({**result.record, "curve": curve, "model": result.model.tolist()}), flush=True)


def main():
    from mpi4py import MPI

    from hvd_compress.parameter_server import leave

    given = json.loads(sys.argv[1])
    if isinstance(given, list):
        for each in given:
            run(each, MPI.COMM_WORLD.Dup())
    else:
        run(given, MPI.COMM_WORLD)
    leave()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
