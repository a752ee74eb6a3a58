"""What runs a job, whatever its algorithm: ranks and their roles, messages, the loops of servers and workers."""
