"""Writing models and adapters: shards, model card, folder."""
