"""The words of the document."""

HEAD = """# Does training get shorter?

    python -m benchmarks.lab --data DIR

trains and measures what this document shows, and writes it; the results are in `lab-accuracy.jsonl`,
`lab-steps.jsonl`, `lab-whole.jsonl` and `lab-costs.jsonl` beside it. What is not finished yet is left out.
"""

TIME = """Seconds to the target, the mean of all seeds with its 95 % interval, and how many times shorter that is than
the time of the best baseline, the quickest of Horovod with fp32 and fp16 and DDP with fp32, fp16 and PyTorch's
PowerSGD hook. It is the product of the steps to the target, of trainings with simulated workers, and of the seconds
of a step on real ranks, each over Horovod (MPI) or DDP (gloo), whichever is faster. A target is a point of accuracy
below what the uncompressed training ends with, or a perplexity 5 % above. "Not reached": by at least one seed."""

WINNERS = """The method whose step is the shortest, and how many times shorter it is than that of the best baseline;
below 1, no method pays. Accuracy is another matter: see the sections on it."""

STEPS = """Medians over the rounds, of the median of some tens of steps. All ranks share the machine's cores, so that
computing and compressing take longer than on hosts of their own."""

ACCURACY = """What trainings on four workers end with: the mean of the seeds with its 95 % interval. In brackets the
factor of the recipe's learning rate that was the best of 0.5, 1 and 2 on a tenth of the training set, which the model
was not trained with; as many were tried for each method as for the baseline. The test set has not been used to choose
anything."""

WORKERS = """The same batches divided among other numbers of workers, with the learning rate of four."""

MOMENTUM = """All recipes with SGD have a momentum of 0.9. Without it, and with a learning rate chosen anew around ten
times the rate, the baseline ends with:"""

LONGER = """Trainings twice as long, whose learning rate falls half as fast: for methods that lose accuracy, and for
the baseline, which gains from longer training as well."""

WHOLE = """Ten trainings were done from start to end on real ranks behind links, without the time of scoring. If the
product of the steps and the seconds of a step is right, both columns agree."""

MANY_HOSTS = """What a step would take on so many hosts, each with a core of its own: what computing, encoding and
decoding take is measured here, the link is simulated, with the ring algorithms, from the bytes that are counted."""

PREDICTIONS = """For each measured cell, the step on the virtual clock, from the time of the collectives, of computing
alone, and of encoding and decoding, the latter in one process, multiplied by the ranks that share a core."""

RECOMMENDED = """The scheme that is predicted to be the fastest is within 10 % of the one that was measured as the
fastest in {good} of {groups} groups of cells of a model, link and stack ({share})."""

PHASES = """Where the milliseconds of a step go on rank 0, by `compression_stats(phases=True)`, on four hosts with links
of 1,000 Mbit/s; "processor" is what the rank's process, with all its threads, takes of a core in a step. All but "wire,
hidden" add up to the step. Four ranks share two cores, so that the wire's time is mostly waiting for other ranks."""
