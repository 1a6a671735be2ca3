"""What is a framework's own: its modules and hooks, its attention, what carries state between blocks."""
