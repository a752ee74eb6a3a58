import os

# These folders are collected only on ranks of a job, which test_ranks.py starts.
HOROVOD, TORCHRUN = {"OMPI_COMM_WORLD_RANK", "HOROVOD_RANK"}, {"TORCHELASTIC_RUN_ID"}
LAUNCHERS = {"torch": HOROVOD, "tensorflow": HOROVOD, "torch_distributed": TORCHRUN}
collect_ignore = [folder for folder, told in LAUNCHERS.items() if not told & set(os.environ)]
