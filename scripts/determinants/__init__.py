"""Parts of scripts/log_det.py."""
