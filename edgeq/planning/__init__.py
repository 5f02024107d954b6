"""What each node gets: the plan, and the numbers that it asks for."""
