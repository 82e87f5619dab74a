"""Programs that a model has written run here: in bubblewrap, without network, files, processes or much of anything."""
