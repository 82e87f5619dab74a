"""The search itself: from opened models and tasks to the final evaluation."""
