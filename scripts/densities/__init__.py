"""Parts of scripts/density.py."""
