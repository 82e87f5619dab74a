"""lm-eval's tasks behind one adapter: none of lm-eval's types leaves this package.

`suite` holds a search's tasks; `loading` gets them from lm-eval, `documents` makes items of their splits, `prompts`
asks, `metrics` and `scores` judge the answers.

Tasks are loaded once. Their prompts are what `lm_eval.simple_evaluate` builds, their scores what the tasks'
own filters and metrics say, one number per item. Deviations from lm-eval, each on purpose:

- Prompts do not depend on the subset. With few-shot examples drawn at random, lm-eval draws other examples
  for other subsets; here an item keeps the examples it gets when lm-eval evaluates its whole split.
- Any split can be scored, not only the one that lm-eval would choose; an item of another split is never its
  own few-shot example.
- Only metrics with a number for each item, averaged, are accepted: the search, paired tests and racing need them.
  Metrics of the whole set (F1, BLEU, perplexity) are refused. One that is better when lower (a refusal rate) must
  be named, and counts negatively.
- Three metrics are ours (`fitness.tasks.loss_metrics`): the loss of the right answer, in nats or bits per byte, and the
  length of what is generated.
"""
