"""The time of a step under DistributedDataParallel: plain, with PyTorch's hooks, and with ours."""
