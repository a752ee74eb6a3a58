"""Parameter servers on mpi4py."""
