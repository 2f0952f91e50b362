"""Models: names to files, blocks and weights by structure, onloading. No model family is named here."""
