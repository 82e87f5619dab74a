"""From few answers to the full score: subsets, item response theory, estimators, racing rules, intervals."""
