"""Corpora, prepared token files, and batches whose order is a function of seed and step."""
