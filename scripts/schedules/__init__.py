"""Learned schedules, of scripts/learn_schedule.py and maclaurin2015.py."""
