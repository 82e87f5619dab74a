"""Functions of a user's own that say how good a model is, in place of lm-eval's tasks; without lm-eval.

`loading` finds a function and its items and knows their code before it runs, `suite` splits the items as a `TaskSuite`
does, `evaluator` calls the function and checks what it returns. A function without items scores a model as a whole:
there is then one item, the model, and nothing is held out.
"""
