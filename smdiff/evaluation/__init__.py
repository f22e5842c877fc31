"""Scores, each with its uncertainty and what is needed to repeat it."""
