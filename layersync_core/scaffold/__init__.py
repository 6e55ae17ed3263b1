"""New packages, as ``layersync new-adapter`` and ``layersync new-regularizer`` write them."""
