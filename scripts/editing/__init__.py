"""The parts of `edit_history.py`."""
