"""Floor 4: the step and the loop around it."""
