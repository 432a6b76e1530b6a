"""Parts of scripts/data_attribution.py."""
