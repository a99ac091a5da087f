"""What a run learns from, and what it is judged by."""
