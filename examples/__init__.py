"""Programs that show hvd_compress at work; `benchmarks` uses their data sets and models."""
