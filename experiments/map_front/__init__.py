"""MAP's surrogates against NSGA-II: the hypervolume of the fronts at equal numbers of answers."""
