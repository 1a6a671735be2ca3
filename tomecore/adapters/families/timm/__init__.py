"""The vision transformers of timm."""
