"""LayerSync adapters for model families that few people train: one package per family, with its tiny model."""
