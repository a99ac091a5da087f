"""Parts of the training loop: what comes before step 0, one step, and what a run ends with."""
