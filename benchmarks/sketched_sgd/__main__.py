"""Sketched-SGD on simulated workers: how to divide its bytes, how far it goes, with how many workers, masking or not.

    python -m benchmarks.sketched_sgd --data DIR

Each training adds a line to a file of results and is not repeated, so the command can be stopped with Ctrl-C and
started again.
"""

from __future__ import annotations

import sys

from benchmarks.common.study import Experiment, Study, main
from benchmarks.sketched_sgd import experiments, sections, text
from benchmarks.sketched_sgd.run import Run
from benchmarks.sketched_sgd.training import train

STUDY = Study(
    module="benchmarks.sketched_sgd",
    description=__doc__.splitlines()[0],
    document="sketched-sgd",
    head=text.HEAD,
    kind=Run,
    run=train,
    experiments={
        "split": Experiment(experiments.split_runs, sections.show_split),
        "cifar10-split": Experiment(experiments.cifar10_split_runs, sections.show_cifar10_split),
        "cifar10": Experiment(experiments.cifar10_runs, sections.show_cifar10),
        "stability": Experiment(experiments.stability_runs, sections.show_stability),
        "workers": Experiment(experiments.workers_runs, sections.show_workers),
        "masking": Experiment(experiments.masking_runs, sections.show_masking),
        "translation": Experiment(experiments.translation_runs, sections.show_translation),
    },
    data="mnist, cifar10 and multi30k",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
