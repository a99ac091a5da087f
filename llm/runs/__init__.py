"""Run identity, run directories, checkpoints, reopening."""
