"""The document's texts, by sections; what is in braces comes from the results."""

HEAD = """# Sketched-SGD

    python -m benchmarks.sketched_sgd --data DIR

trains what this shows, and writes it.
"""

SPLIT = """## How to divide the bytes

MNIST, a perceptron of 269,322 parameters, four workers of 32 examples each, two epochs, learning rate 0.05, two
seeds: mean ± standard deviation of the accuracy. All sketches send a fortieth of the dense bytes of the three
matrices; biases travel dense. Error feedback leaves the momentum, 0.9, to the optimizer. Trainings that diverge end
at 9.8 %. Those with p1 have a count sketch, the last three an invertible one.

{table}

With a count sketch, the truncation p1 decides. If every worker sketches all of its vector (p1 = 0), the noise of the
many small coordinates hides the large ones; what is chosen is not what has gathered, the residual grows, and with
momentum training diverges. The fewer coordinates the workers sketch, the fewer share a column, until all that are
sketched are found: at p1 = 1/16 four workers sketch at most k / 4 coordinates together, in 2 k sums. The other
candidates are then those that happen to share columns with large ones, not the next largest. To ask for more
candidates than are applied (p2 = 2, 4 or 8) is of use where the selection is poor. Without a second round (p2 = 0) the
estimates are too noisy to apply. A single row is the worst use of the bytes, five rows are the best or near it.

So what a count sketch does well at these sizes is to tell a few coordinates of many workers, and it takes eight sums
for each. An invertible sketch does that with 1.3, and nothing else: it is ahead of all divisions of a count sketch,
with error feedback and with momentum correction. Three rows are what the theory asks for; five rows, or twice the
candidates (p2 = 2), are no better. The rule for `budget` is: 1.3 sums in three rows, and one exact value, for each of k
coordinates, all of which are applied.

Momentum correction is nowhere better than error feedback by more than noise, and it is what diverges where the
selection is poor: a coordinate that waits gathers momentum meanwhile.
"""

CIFAR10_SPLIT = """## The same for a convolutional network

CIFAR-10 (its first 20,000 training images), ResNet-9 with 8 channels in its first layer instead of 64, 103,944
parameters, four workers of 32 images each, eight epochs, learning rate 0.1, one seed. All sketches send a fortieth
of the bytes of the matrices; batch norm, the first and the last layer travel dense, which in this small network
makes 26 times fewer bytes of 40.

{table}

With a count sketch it matters how many coordinates are applied: with one in 240 of them (k = 428), of which twice as
many are asked for, training is slower than with one in 120 or 80, whose selection is poorer. The invertible sketch
(the last row) applies one in ninety, all of them large for some worker.
"""

CIFAR10 = """## How far it goes

CIFAR-10 (its first 20,000 training images), ResNet-9 with 8 channels in its first layer instead of 64, 103,944
parameters, four workers of 32 images each, learning rate 0.2, flips and shifts, three seeds (one of the longer
trainings). Bytes are of all that a worker sends, and of all that it sends and receives. Where the budget is 0.1 and
0.0115, small parameters and those of one axis travel dense, as they do unless told otherwise, and are counted;
elsewhere all parameters are compressed.

{table}

![Accuracy against bytes](sketched-sgd-cifar10.png)

At forty times fewer bytes the published division of them (a count sketch, momentum correction) is seven points
behind; names that are read exactly are less than three, and at a hundred times fewer are still ahead of it. Forty
times without a loss, as the paper has it for a network of 6.6 million parameters in 24 epochs, we do not reach with
this narrow one in twelve, whose two thousand steps apply one coordinate in ninety at a time; in 24 epochs half of the
loss is left. top-k is as good with 64 times fewer bytes sent, or 25 times fewer sent and received: to name the
coordinates costs it a few bits each, while the sketch spends 1.3 numbers on each. The sketch's bytes do not grow with
the workers (below), and top-k's do. The width that two cores can train leaves open what the published width would
show.
"""

STABILITY = """## What keeps it stable

As in the first table, at a hundredth of the bytes. The warm-up of the budget is exponential, from a quarter in the
first of the two epochs. A clipped residual is scaled to at most ten times the norm of the worker's gradient, by the
benchmark itself: it is not part of the method.

{table}

What is selected does most. With names that are read exactly, the last ten rows, nothing diverges, masked or not, and
the residual stays small. With a count sketch of all coordinates (p1 = 0), error feedback needs a warm-up of the budget
or a clipped residual, and momentum correction a clipped residual, or DGC's clipping of the gradient; masking does not
help. With p1 = 1/16 error feedback is stable by itself, and momentum correction if the momentum is masked. Clipping,
of either kind, saves what would diverge and costs accuracy where nothing would: so there is no setting for the
residual's. The warm-up helps wherever training does not diverge, for the bytes that it costs: most of what so short a
training sends.
"""

WORKERS = """## From 2 to 256 workers

MNIST, the perceptron of the first table, three epochs, learning rate 0.1, one seed. A step has 512 examples,
divided among the workers, so that uncompressed the trainings are the same but for rounding. top-k is not there with
256 workers: each of the simulated ones decodes what all of them send.

{table}

![Accuracy and bytes against workers](sketched-sgd-workers.png)

What a worker sends and receives of sketches does not change with their number; of top-k it receives as much as of
the uncompressed gradient when there are 64. The sketch's accuracy falls a little: the more workers there are, the
fewer coordinates each may name, and the fewer examples it has to know which. From 2 to 256 it loses less than a
point. top-k loses nothing, for it sends what each worker chooses; that is what its bytes grow by.
"""

MASKING = """## Masking of the momentum

As in the first table; the momentum, 0.9, is the momentum correction's. "Left by masking" is the norm of a worker's
momentum after masking as a part of that before, in the mean of the last epoch's steps. Uncompressed it is {none}.

{table}

![Accuracy and momentum against k](sketched-sgd-masking.png)

With masking, more k hurts, and the momentum says why: masking zeroes it wherever something is sent. At a k of 0.1 %
it leaves almost all of the momentum, at 30 % a third (of the sketch, which sends less of a worker's own, a half);
with every coordinate sent there would be none, and a momentum of 0.9 less is a learning rate ten times smaller.
Without masking, more k is better, up to the uncompressed accuracy. So masking is for small k, where a coordinate has
waited for long, and what has been sent would be pushed again by an old momentum.
"""

TRANSLATION = """## Translation, with Adam

Multi30k, English to German, 29,000 pairs of sentences, a Transformer of 1,175,040 parameters with two layers on either
side, four workers of 32 pairs each, six epochs, one seed; perplexity of a piece on the validation set, BLEU (SacreBLEU)
of greedy translations of the test set of 2016.

{table}

![Perplexity against epochs](sketched-sgd-translation.png)

Of a mean that is sparse, Adam sees each coordinate seldom and then all that has gathered; its step is as long as if
that were one gradient, and training is slow. Three times the learning rate makes up for most of it. In two phases,
with the variance frozen after 203 of 1,356 steps, the loss is about the same, but these first steps are sent whole,
and are most of what is sent. Either is where SGD with momentum is uncompressed, and behind Adam.
"""
