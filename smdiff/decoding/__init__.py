"""Turning noise into text: one loop, schedulers that decide what to reveal, and exact draws."""
