"""The transformer: attention, positions, blocks, key-value cache, accounting."""
