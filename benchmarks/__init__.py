"""Measures each stage from the disk to the training step and names the slowest."""
