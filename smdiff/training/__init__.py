"""Training on `transformers.Trainer`: the objective, the noise of each step, averaged weights, checkpoints."""
