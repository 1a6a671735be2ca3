"""transformers' vision towers, and others built like them."""
