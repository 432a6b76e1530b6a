"""Parts of scripts/depth_sweep.py."""
