"""Measuring: perplexity, fidelity to a reference model, lm-eval tasks."""
