"""The document's texts, by sections; what is in braces comes from the results."""

UNLIMITED = "All ranks shared one machine without link limits here, so the times do not represent a network."

INCOMPLETE = "Not all seeds reached the end; in brackets, where each ended: {}."

HEAD = """# Double quantization

    python -m benchmarks.double_quantization --data DIR

runs what this document shows, and writes it. The results of all jobs are in
[double-quantization.jsonl](double-quantization.jsonl).
"""

TARGET = """## Bits and time to a target

Logistic regression on rt-polarity: 10,662 sentences, 18,362 features, l2 = 1e-5, to P(x) - P* of 1e-6. Four workers
with batches of 64, and one server, each on a host of its own behind a link of 100 Mbit/s each way. Steps are 0.3 / L
(0.5 / L for `accelerated`), and epochs are two passes over the rows; `sparse` keeps 2 % of the coordinates. Five
seeds, mean ± standard deviation, or a single seed where there is no deviation. "4 / 2" means 4 bits per coordinate of
the gradient and 2 of the model. "Cores" is the share of both cores' time that was used, by anything running on the
machine; "link" is the share of its rate at which the busiest link sent or received. Waiting ranks poll for messages,
so the cores look busier than they need to be; and beside some of the jobs, here and below, other work ran at the
lowest priority.

{table}

![Suboptimality over bits and seconds](double-quantization-target.png)

`asylpg` sends up to {asylpg} than full precision,
`accelerated` up to {accelerated}.
The model dominates the cost: it is dense, while gradients of sparse rows are not. All variants, full precision
included, send only the nonzero coordinates of gradients: {sparse} Mbit, where 32 bits for each coordinate would be
{dense} Mbit, and {more} times as many bits in all. So quantizing only the gradient gains almost nothing, and quantizing
only the model gains most; `sparse` drops coordinates of gradients that are sparse already, and saves little.
Quantizing the model itself on a grid, as in the paper, needs more bits the closer x comes to the snapshot, many more
than quantizing the difference from it. With few bits the two cores, on which all five hosts run, limit the time as
much as the links do.

### A larger step

The same with steps of 1 / L, and epochs of one pass for `accelerated`.

{larger}

Full precision gains a factor of three. With quantization noise and delayed answers, the other variants do not tolerate
the larger step: `asylpg` needs more epochs than with the small one, and `accelerated` does not always reach the
target. If every variant uses the step that suits it better, `accelerated` sends {accelerated_tuned} times fewer bits
than full precision, and `asylpg` {asylpg_tuned} times fewer: more than half of the factors above come from a step that
is too small for full precision.
"""

SOFTMAX = """## The same on MNIST

Softmax regression, 7,850 parameters, l2 = 1e-3, to P(x) - P* of 1e-5, batches of 256, `sparse` with 5 % of the
coordinates; otherwise as above. Here gradients are as dense as the model.

{table}

![Suboptimality over bits and seconds](double-quantization-softmax.png)

`asylpg` sends up to {asylpg} than full precision,
`accelerated` up to {accelerated}.
All variants reach the same accuracy on the test set, {accuracy}.
"""

SCALING = """## More workers

A perceptron of 159,010 parameters on MNIST (200 hidden units), batches of 16, steps of 0.05, epochs of 400 steps,
until P(x) is at most 1.2 at the end of an epoch. Full precision, and `asylpg` with 8 bits. "Gain" is the speedup over
half as many workers, by the medians. "Cores" and "link" are as above, measured from the end of the first full gradient
on.

With one server on a host of its own, all links of 100 Mbit/s, two seeds:

{one}

Two workers saturate the server's link, and even one nearly does. The link is then the limit, and more workers cannot
help: they only delay the answers. So after the same number of steps the objective is worse, and full precision with
eight workers needs another epoch.

With as many servers as workers, one of each on every host, five seeds. Here links have 25 Mbit/s, which two cores can
keep busy for eight hosts:

{many}

![Seconds to the target](double-quantization-scaling.png)

With one worker nothing leaves the host. After that every host adds a link, and each of W links carries (W - 1) / W² of
a step's bits each way: from four to eight workers the links allow 71 % more steps a second. Both variants come close
to that. With eight workers the sixteen ranks keep the two cores busy as well, and more workers do not speed up the
full gradient there, so its time does not shrink.
"""

NETWORK = """## A network

A perceptron of 79,510 parameters on MNIST (100 hidden units), four workers with batches of 64 and one server, each on
a host of its own behind a link of 100 Mbit/s each way. Three epochs of 469 steps of 0.05, `sparse` with 5 % of the
coordinates.

{table}

![Accuracy over bits and seconds](double-quantization-network.png)

`asylpg` with 3 bits is {loss} points behind full precision, with {fewer} times fewer bits and in {faster} times less
time. Quantizing only the model, or only the gradient, saves little of either: the bits of the other direction remain,
and each direction of the server's link is a limit of its own.
"""
