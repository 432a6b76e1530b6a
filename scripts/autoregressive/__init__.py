"""Parts of scripts/autoregressive_images.py."""
