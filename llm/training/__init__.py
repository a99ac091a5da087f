"""Training: what a run consists of, its loop, one step, its checkpoints, and how it ends."""
