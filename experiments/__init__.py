"""One folder for each published number, the zoo of small models and the quickstart; `harness` is what they share."""
