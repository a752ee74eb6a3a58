"""What the workers minimize: one file a family of objectives, and the protocol that any other follows.

`torch_objective.py` needs PyTorch and is imported by whoever uses it.
"""

from hvd_compress.parameter_server.objectives.base import Objective, Regularizer, digest, expected_smoothness
from hvd_compress.parameter_server.objectives.classifiers import Classifier, Perceptron, Softmax
from hvd_compress.parameter_server.objectives.logistic import LogisticRegression
from hvd_compress.parameter_server.objectives.optimum import minimum

__all__ = [
    "Classifier",
    "LogisticRegression",
    "Objective",
    "Perceptron",
    "Regularizer",
    "Softmax",
    "digest",
    "expected_smoothness",
    "minimum",
]
