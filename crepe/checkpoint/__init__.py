"""Checkpoints: write, read, card, Hub."""
