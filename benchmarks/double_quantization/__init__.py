"""Double quantization on parameter servers."""
