"""Floor 2: updates, clipping, learning-rate schedules."""
