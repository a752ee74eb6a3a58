import os

# What is in these folders runs on several ranks: test_ranks.py starts it.
collect_ignore = [] if {"OMPI_COMM_WORLD_RANK", "HOROVOD_RANK"} & set(os.environ) else ["torch", "tensorflow"]
