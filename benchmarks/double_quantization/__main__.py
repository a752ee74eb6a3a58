"""Double quantization on parameter servers: bits and time to a target, more workers, and a network that is not convex.

    python -m benchmarks.double_quantization --data DIR

Each job adds a line to a file of results and is not repeated, so the command can be stopped with Ctrl-C and started
again. As root, each host is a network namespace behind a link of its own; otherwise all ranks share this machine,
without links.
"""

from __future__ import annotations

import sys

from benchmarks.common.study import Experiment, Study, main
from benchmarks.double_quantization import experiments, sections, text
from benchmarks.double_quantization.job import Job
from benchmarks.double_quantization.running import run

STUDY = Study(
    module="benchmarks.double_quantization",
    description=__doc__.splitlines()[0],
    document="double-quantization",
    head=text.HEAD,
    kind=Job,
    run=run,
    experiments={
        "target": Experiment(experiments.target_jobs, sections.show_target),
        "scaling": Experiment(experiments.scaling_jobs, sections.show_scaling),
        "network": Experiment(experiments.network_jobs, sections.show_network),
        "softmax": Experiment(experiments.softmax_jobs, sections.show_softmax),
    },
    data="rt-polarity and mnist",
    parallel=False,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
