"""The field's smaller search systems on the zoo."""
