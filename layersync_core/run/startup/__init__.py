"""The folder that ``layersync run`` puts on PYTHONPATH: its ``sitecustomize`` runs in every Python of the tree."""
