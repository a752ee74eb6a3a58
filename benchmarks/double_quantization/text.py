"""The document's texts, by sections; what is in braces comes from the results."""

UNLIMITED = "Here all ranks shared one machine, without links: times say nothing of a network."

HEAD = """# Double quantization

    python -m benchmarks.double_quantization --data DIR

runs what this shows, and writes it.
"""

TARGET = """## Bits and time to a target

Logistic regression on rt-polarity: 10,662 sentences, 18,362 features, l2 = 1e-5, to P(x) - P* of 1e-6. Four workers
with batches of 64, and one server, each on a host of its own behind a link of 100 Mbit/s each way.
Steps are 0.3 / L, of accelerated 0.5 / L, and epochs are two passes over the rows; sparse keeps 2 % of the coordinates.
Five seeds, mean ± standard deviation, or one where there is no deviation. "4 / 2" stands for 4 bits of a coordinate of
the gradient and 2 of the model. Of both cores' time the table has the part that was used, by whatever ran on the
machine, and of the busiest link's the part that it sent, or received, in. Ranks that wait look for messages again and
again, so that cores seem busier than they need to be; and beside some of the jobs, here and below, other work ran at
the lowest priority.

{table}

![Suboptimality over bits and seconds](double-quantization-target.png)

asylpg sends up to {asylpg} than full precision,
accelerated up to {accelerated}.
It is the model that costs: it is dense, and gradients of sparse rows are not. All variants, full precision among them,
send of these the nonzero coordinates alone: {sparse} Mbit, where 32 bits for each coordinate would be {dense} Mbit,
and {more} times as many bits in all. So to quantize the gradient alone gains next to nothing, and the model alone
most of it; sparse leaves out coordinates of what is sparse to begin with, and saves little. A grid of the model itself,
as in the paper, needs more bits the nearer x comes to the snapshot: it is no match for the difference. With few bits
the two cores, on which all five hosts run, limit the time as much as the links do.

### A larger step

The same with steps of 1 / L, and epochs of one pass for accelerated.

{larger}

Full precision gains three times by it. With the noise of the quantization, and answers that come late, the others do
not bear it: asylpg needs more epochs than with the small step, and the accelerated one does not always come to the
target. If every variant has the better step for it, accelerated sends {accelerated_tuned} times fewer bits than full
precision, asylpg {asylpg_tuned} times: more than half of the factors above is owed to a step that is small for full
precision.
"""

SOFTMAX = """## The same on MNIST

Softmax regression, 7,850 parameters, l2 = 1e-3, to P(x) - P* of 1e-5, batches of 256, sparse with 5 % of the
coordinates; else as above. Here gradients are as dense as the model.

{table}

![Suboptimality over bits and seconds](double-quantization-softmax.png)

asylpg sends up to {asylpg} than full precision,
accelerated up to {accelerated}.
Accuracy on the test set is the same for all, {accuracy}.
"""

SCALING = """## More workers

A perceptron of 159,010 parameters on MNIST (200 hidden units), batches of 16, steps of 0.05, epochs of 400 steps, until
P(x) is at most 1.2 at an epoch's end. Full precision, and asylpg with 8 bits. The gain is in speed over half as many
workers, by the medians. Of both cores' time the table has the part that was used, by whatever ran on the
machine, and of the busiest link's the part that it sent, or received, in; both from the end of the first full gradient
on.

With one server on a host of its own, all links of 100 Mbit/s, two seeds:

{one}

Two workers fill the server's link, and even one nearly does. It is the limit then, and more cannot help: they only
make answers later. So after the same number of steps the objective is worse, and full precision with eight workers
needs another epoch.

With as many servers as workers, one of each on every host, five seeds. Here links have 25 Mbit/s, which two cores
can keep busy for eight hosts:

{many}

![Seconds to the target](double-quantization-scaling.png)

With one worker nothing leaves the host. Then every host adds a link, and of a step's bits each of W links carries
(W - 1) / W² each way: from four to eight workers, 71 % more steps a second are what links allow. Both come near that.
With eight workers sixteen ranks keep the two cores busy as well, and the full gradient, which no more workers make
faster there, is a part of the time that does not shrink.
"""

NETWORK = """## A network

A perceptron of 79,510 parameters on MNIST (100 hidden units), four workers with batches of 64 and one server,
each on a host of its own behind a link of 100 Mbit/s each way.
Three epochs of 469 steps of 0.05, sparse with 5 % of the coordinates.

{table}

![Accuracy over bits and seconds](double-quantization-network.png)

asylpg with 3 bits is {loss} points behind full precision, with {fewer} times fewer bits and in a time that is
{faster} times shorter. To quantize the model alone, or the gradient alone, saves little of either: bits of the other
direction remain, and each direction of the server's link is a limit of its own.
"""
