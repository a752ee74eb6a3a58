"""The document's texts, by sections; what is in braces comes from the results."""

HEAD = """# Sketched-SGD

    python -m benchmarks.sketched_sgd --data DIR

trains what this document shows, and writes it. The results of all trainings are in
[sketched-sgd.jsonl](sketched-sgd.jsonl).
"""

SPLIT = """## How to divide the bytes

MNIST, a perceptron of 269,322 parameters, four workers of 32 examples each, two epochs, learning rate 0.05, two seeds:
mean ± standard deviation of the accuracy. All sketches send a fortieth of the dense bytes of the three matrices;
biases are sent uncompressed. With error feedback, the optimizer keeps the momentum of 0.9. Trainings that diverge end
at 9.8 %. Specs with p1 use a count sketch, the last three an invertible sketch.

{table}

With a count sketch, the truncation p1 decides. If every worker sketches its whole vector (p1 = 0), the noise of the
many small coordinates hides the large ones: the coordinates that are selected are not those with the largest
residuals, so the residual grows, and with momentum training diverges. The fewer coordinates the workers sketch, the
fewer share a column, until all that are sketched are found: at p1 = 1/16 four workers together sketch at most k / 4
coordinates, in 2 k sums. The other candidates are then coordinates that happen to share columns with large ones, not
the next largest. Asking for more candidates than are applied (p2 = 2, 4 or 8) helps where the selection is poor.
Without a second round (p2 = 0) the estimates are too noisy to apply. A single row makes the worst use of the bytes;
five rows are the best or close to it.

So at these sizes a count sketch is good at reporting a few coordinates of many workers, and it takes eight sums for
each. An invertible sketch takes 1.3 sums for the same: it is ahead of all divisions of a count sketch, with error
feedback and with momentum correction. The theory asks for three rows; five rows, or twice the candidates (p2 = 2), are
no better. The rule for `budget` is therefore: 1.3 sums in three rows, and one exact value, for each of k coordinates,
all of which are applied.

Momentum correction is never better than error feedback by more than noise, and it diverges where the selection is
poor: a coordinate that waits accumulates momentum meanwhile.
"""

CIFAR10_SPLIT = """## The same for a convolutional network

CIFAR-10 (its first 20,000 training images), ResNet-9 with 8 channels in its first layer instead of 64, 103,944
parameters, four workers of 32 images each, eight epochs, learning rate 0.1, one seed. All sketches send a fortieth of
the bytes of the matrices. Batch norm and the first and last layers are sent uncompressed, so this small network sends
26 times fewer bytes in all, not 40.

{table}

With a count sketch the number of applied coordinates matters: training is slower with one in 240 of them (k = 428,
with twice as many candidates) than with one in 120 or 80, although the selection is then poorer. The invertible sketch
(the last row) applies one in ninety, all of them large for some worker.
"""

CIFAR10 = """## How far it goes

CIFAR-10 (its first 20,000 training images), ResNet-9 with 8 channels in its first layer instead of 64, 103,944
parameters, four workers of 32 images each, learning rate 0.2, flips and shifts, three seeds (one for the longer
trainings). "Sent" counts all bytes that a worker sends, "in all" those that it sends and receives. With budgets of 0.1
and 0.0115, small parameters and parameters of one axis are sent uncompressed, as they are by default, and are counted;
in the other rows all parameters are compressed.

{table}

![Accuracy against bytes](sketched-sgd-cifar10.png)

At forty times fewer bytes the published division (a count sketch, momentum correction) is seven points behind; the
invertible sketch, which recovers indices exactly, is less than three behind, and at a hundred times fewer bytes it is
still ahead of the published division. The paper reports forty times fewer bytes without a loss for a network of 6.6
million parameters in 24 epochs. This narrow network does not reach that in twelve epochs: its two thousand steps apply
one coordinate in ninety each. In 24 epochs half of the loss remains. top-k is as good with 64 times fewer bytes sent,
or 25 times fewer sent and received: an index costs it a few bits, while the sketch spends 1.3 numbers on each. But the
sketch's bytes do not grow with the workers (below), and top-k's do. Two cores cannot train the published width, so
what it would show stays open.
"""

STABILITY = """## What keeps it stable

As in the first table, at a hundredth of the bytes. The warm-up of the budget is exponential and starts at a quarter in
the first of the two epochs. A clipped residual is scaled to at most ten times the norm of the worker's gradient; the
benchmark does this, it is not part of the method.

{table}

The selection matters most. With exactly recovered indices (the last ten rows) nothing diverges, masked or not, and the
residual stays small. With a count sketch of all coordinates (p1 = 0), error feedback needs a warm-up of the budget or
a clipped residual, and momentum correction needs a clipped residual or DGC's clipping of the gradient; masking does
not help. With p1 = 1/16 error feedback is stable by itself, and so is momentum correction with masking. Either kind of
clipping prevents divergence but costs accuracy where nothing would diverge, so there is no setting for clipping the
residual. The warm-up helps wherever training does not diverge, at the price of its bytes: most of what so short a
training sends.
"""

WORKERS = """## From 2 to 256 workers

MNIST, the perceptron of the first table, three epochs, learning rate 0.1, one seed. A step has 512 examples, divided
among the workers, so the uncompressed trainings are the same up to rounding. top-k is not shown for 256 workers: each
simulated worker decodes the payloads of all of them.

{table}

![Accuracy and bytes against workers](sketched-sgd-workers.png)

The bytes of sketches that a worker sends and receives do not depend on the number of workers; with top-k and 64
workers it receives as much as of the uncompressed gradient. The sketch's accuracy falls slightly: with more workers
each may report fewer coordinates, and has fewer examples to choose them by. From 2 to 256 workers it loses less than a
point. top-k loses nothing, since it sends what each worker chooses; that is why its bytes grow.
"""

MASKING = """## Masking of the momentum

As in the first table; the momentum of 0.9 is that of momentum correction. "Left by masking" is the norm of a worker's
momentum after masking relative to that before, in the mean over the last epoch's steps. The uncompressed accuracy is
{none}.

{table}

![Accuracy and momentum against k](sketched-sgd-masking.png)

With masking, a larger k hurts, and the momentum shows why: masking zeroes it wherever something is sent. At a k of 0.1
% almost all of the momentum is left, at 30 % a third (half with the sketch, which sends less of a worker's own
coordinates). If every coordinate were sent there would be none, and losing a momentum of 0.9 amounts to a learning
rate ten times smaller. Without masking, a larger k is better, up to the uncompressed accuracy. So masking is for small
k, where a coordinate has waited long and an old momentum would apply again what has already been sent.
"""

TRANSLATION = """## Translation, with Adam

Multi30k, English to German, 29,000 pairs of sentences, a Transformer of 1,175,040 parameters with two layers in
encoder and decoder, four workers of 32 pairs each, six epochs, one seed; perplexity per token on the validation set,
BLEU (SacreBLEU) of greedy translations of the test set of 2016.

{table}

![Perplexity against epochs](sketched-sgd-translation.png)

With a sparse mean, Adam sees each coordinate rarely, and then all that it has accumulated; the step is as long as for
a single gradient, so training is slow. Three times the learning rate makes up for most of this. In two phases, with
the variance frozen after 203 of 1,356 steps, the loss is about the same, but those first steps are uncompressed and
are most of what is sent. Both end where uncompressed SGD with momentum does, behind Adam.
"""
