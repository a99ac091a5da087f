"""Parameter groups by role, AdamW, learning-rate schedules."""
