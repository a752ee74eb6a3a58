"""From gradients to their means, without any framework."""
