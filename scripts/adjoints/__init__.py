"""Parts of scripts/gradient_flow_lstm.py."""
