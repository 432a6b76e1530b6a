"""Parts of reversible_transformer.py."""
