"""Parts of scripts/mdrnn_digits.py."""
