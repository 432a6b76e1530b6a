"""Parts of scripts/wavenet_audio.py."""
