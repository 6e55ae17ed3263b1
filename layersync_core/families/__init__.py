"""Model families: adapters as data, found through entry points, and families that are refused. Imports no torch."""
