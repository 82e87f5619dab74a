"""lm-eval's tasks behind one adapter: lm-eval is imported here only, and none of its types leaves this package.

`suite` holds a search's tasks; `loading` gets them from lm-eval, `documents` turns their splits into items, `prompts`
builds the requests, `metrics` and `scores` turn answers into scores.

Tasks are loaded once. Their prompts are those of `lm_eval.simple_evaluate`, and their scores come from the tasks' own
filters and metrics, one number per item. Deliberate deviations from lm-eval:

- Prompts do not depend on the subset. With few-shot examples drawn at random, lm-eval draws other examples for other
  subsets; here an item has the examples that it has when lm-eval evaluates the whole split.
- Documents that a task draws or shuffles by `random` are those of lm-eval when it loads this task alone: the generators
  are seeded for each task and split, so that every process has the same items.
- Any split can be scored, not only the one that lm-eval would choose; an item of another split is never its own
  few-shot example.
- A metric must be a mean of one number per item, because the search, paired tests and racing need scores per item.
  Metrics over the whole set (F1, BLEU, perplexity) are refused. A metric where lower is better (a refusal rate) has to
  be named, and is negated.
- Three metrics are ours (`fitness.tasks.loss_metrics`): the loss of the right answer, in nats or in bits per byte, and
  the length of the generated text.
"""
