"""What the transformer and the experts share: linear maps, norms, feed-forward, the loss."""
