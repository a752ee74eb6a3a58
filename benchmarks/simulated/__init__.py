"""Training with any number of simulated workers in one process, and the tasks: a model with its data."""
