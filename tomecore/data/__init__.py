"""Files that ship with the package; ``tomecore.digits.weights_path`` finds them."""
