"""Parts of scripts/doctor.py."""
