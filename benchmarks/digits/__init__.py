"""Every compression method on the digits."""
