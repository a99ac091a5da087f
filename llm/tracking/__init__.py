"""What a run leaves for people to look at: metric log, W&B mirror, progress, loss curve."""
