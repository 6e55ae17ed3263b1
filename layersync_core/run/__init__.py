"""``layersync run``: LayerSync in an unmodified training program."""
