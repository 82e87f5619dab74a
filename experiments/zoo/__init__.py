"""The zoo: a base model and three experts whose skills compose, with the tasks that measure them."""
