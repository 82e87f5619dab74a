"""One model, one tokenizer, many items: log-likelihoods and generations."""
