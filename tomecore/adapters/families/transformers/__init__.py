"""The vision towers of Hugging Face transformers."""
