"""Seconds and memory of a training step, ours and others', side by side in one process."""
