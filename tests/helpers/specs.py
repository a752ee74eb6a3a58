"""Compressors that represent the families, where a test of each method would take too long."""

FEW = [
    "none",
    "topk(ratio=0.05, values=fp16, scope=model)",
    "randomk(ratio=0.1)",
    "qsgd",
    "powersgd",
    "wangni",
    "sketched_sgd",
    "dgc(ratio=exponential(0.25, 0.01, steps=3), feedback=momentum(nesterov=True))",
    "qsgd(feedback=ef21)",
]
