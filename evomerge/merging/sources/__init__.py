"""Opening the models to merge: checkpoints, adapters and GGUF files, their vocabularies, and checks between them."""
