"""Benchmarks of code: prompts, answers, and the sandbox that runs them."""
