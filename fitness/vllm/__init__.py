"""Answers from vLLM, which runs in a process and an environment of its own."""
