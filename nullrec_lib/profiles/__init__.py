"""Who likes what, in words: profiles of users and items that refine each other (Profile-then-Embedding, stage one)."""
