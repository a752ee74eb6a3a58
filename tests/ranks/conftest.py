import os

# These folders are collected only on ranks of a job, which test_ranks.py starts.
collect_ignore = [] if {"OMPI_COMM_WORLD_RANK", "HOROVOD_RANK"} & set(os.environ) else ["torch", "tensorflow"]
