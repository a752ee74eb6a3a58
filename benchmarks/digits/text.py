"""The document's texts; what is in braces comes from the results."""

TITLE = "# Every method on the digits"

ABOUT = """wrote this file. It trains on the digits that come with scikit-learn, with `examples/{framework}/train.py`: a
perceptron of {parameters:,} parameters, SGD with momentum 0.9 and a learning rate of 0.05 that falls to 0, and 10
epochs, unless the further arguments say otherwise; {ranks} workers under `mpirun` on {cores} cores of one machine.
Accuracies are mean ± standard deviation over {seeds} seeds. Where a method keeps the momentum itself, the optimizer
has none. "Within noise" means that the mean differs from that of `none` by at most {noise:.1f} points: twice the
standard error of the difference of two such means, from the median of the standard deviations of all {rows} rows. By
chance alone, one or two rows are expected to differ by more. One of the {test_examples} test images is {one:.1f}
points.
"""

FINDINGS = """Of the {methods} methods that compress, {methods_good} are not behind `none` by more than noise, and of
{compositions} compositions {compositions_good}. Behind by more: {behind}. The fewest bytes without falling behind:
{fewest}. With their defaults, and the optimizer that `none` has, these keep up: {keep_up}; these do not: {do_not} (last
table). Where signs vote, every coordinate moves by the learning rate in each step, so the rate must be small. `randomk`
sends each coordinate rarely at a low ratio, so its residual is applied late: it needs a larger ratio, more epochs, or
a scaled estimate without momentum. Momentum correction at these ratios needs a higher learning rate. The settings
{chosen}; none were chosen for `none`, which also gains by a higher rate or more epochs. A task that is learned in
seconds tells methods that learn from methods that do not, but not how good they are on a large task.
"""

CHOSEN = "were chosen with other seeds than these, but on the same test images"
CHOSEN_WITH_TENSORFLOW = CHOSEN + ", and all but those of {} with PyTorch"

TABLES = {
    "method": "Methods",
    "composition": "Compositions",
    "comparison": "For comparison: at defaults, and without compression",
}
