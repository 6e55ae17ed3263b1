"""The conformance kit for adapters: subclass ``AdapterConformance`` in a pytest file.

```python
from layersync_core.testing import AdapterConformance


class TestMine(AdapterConformance):
    family = "mine"
```
"""

from layersync_core.testing.arguments import perturbed
from layersync_core.testing.conformance import AdapterConformance
from layersync_core.testing.probe import look, randomise_weights, raw_outputs, scatter_weights, seed_everything

__all__ = [
    "AdapterConformance",
    "look",
    "perturbed",
    "randomise_weights",
    "raw_outputs",
    "scatter_weights",
    "seed_everything",
]
