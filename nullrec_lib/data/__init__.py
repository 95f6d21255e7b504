"""What happened: catalogues, interactions, splits, examples. Imports nothing further down the line."""
