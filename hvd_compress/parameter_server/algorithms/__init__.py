"""The algorithms, a file each: the part of a server, the part of a worker, and the settings that make both."""
