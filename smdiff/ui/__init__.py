"""What a person sees: console, progress, pictures."""
