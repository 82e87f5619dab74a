"""How many answers, and how many seconds, each search needs: our default, our strategies and the field's programs."""
