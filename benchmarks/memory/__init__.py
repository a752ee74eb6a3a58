"""The memory that a step of each compressor takes."""
