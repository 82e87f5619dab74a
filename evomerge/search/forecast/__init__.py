"""What a search will ask and how long that takes, found by rehearsing it with made-up answers."""
