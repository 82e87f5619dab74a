"""A real small model: SmolLM2-135M-Instruct, two experts fine-tuned from it, and a search over their merges."""
