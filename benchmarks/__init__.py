"""The project's benchmarks, started from its root as `python -m benchmarks.NAME`; `common` is what they share."""
