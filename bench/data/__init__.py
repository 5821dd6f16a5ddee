"""Data sets as tensors in memory: sources, cache, splits, augmentation and batches."""
