"""Many jobs: a snapshot of what they run, processes, a table of how they stand."""
