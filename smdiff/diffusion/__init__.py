"""Masked diffusion and soft-masking as pure tensor functions: no files, no screen, no Trainer."""
