"""Image models: what may be cut, which channels go, physical removal, fine-tuning, saving and loading."""
