"""Items per second: lm-eval's Hugging Face model against `fitness.scoring.evaluator.Evaluator`."""
