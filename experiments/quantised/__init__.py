"""Scores of SmolLM2's merges with weights of 8 and 4 bits against those in float32."""
