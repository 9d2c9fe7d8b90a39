"""What decisions and tree operations cost in time."""
