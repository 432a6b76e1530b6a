"""Parts of scripts/tune.py."""
