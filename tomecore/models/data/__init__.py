"""Files that ship with the package; ``tomecore.models.digits.weights_path`` finds them."""
