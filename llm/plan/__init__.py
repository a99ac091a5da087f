"""Before spending: what a line would do and what that costs."""
