"""One point: the recipe, its YAML, its rules, and what it means for each tensor."""
