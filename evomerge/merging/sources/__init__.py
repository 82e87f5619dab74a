"""Opening what is merged: checkpoints, adapters, GGUF files, vocabularies, and the checks between them."""
