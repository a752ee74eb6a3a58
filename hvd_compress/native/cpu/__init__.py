"""The kernels for the CPU, in C++: one set of files for each topic (see "Kernels" in docs/architecture.md)."""
