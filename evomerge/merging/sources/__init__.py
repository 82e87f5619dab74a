"""Opening the models to merge: checkpoints, adapters and GGUF files, and their vocabularies."""
