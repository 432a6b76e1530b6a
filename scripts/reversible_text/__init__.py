"""Parts of scripts/reversible_language_model.py."""
