"""What the benchmarks share: files of results, studies, Markdown and pictures."""
