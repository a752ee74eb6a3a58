"""Sketched-SGD on simulated workers."""
