"""The vision transformers of Paddle's libraries."""
