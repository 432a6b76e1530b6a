"""Parts of scripts/trainability.py."""
