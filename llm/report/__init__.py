"""What a run has to tell once it is over."""
