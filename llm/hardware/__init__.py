"""Device, precision, threads, allocator, signals."""
