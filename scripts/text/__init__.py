"""Parts of scripts/lstm_text.py."""
