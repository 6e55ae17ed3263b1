"""The conformance kit for adapters: subclass ``AdapterConformance`` in a pytest file.

```python
from layersync_adapter_mine import adapter, tiny
from layersync_core.testing import AdapterConformance


class TestMine(AdapterConformance):
    adapter = adapter
    tiny_model = staticmethod(tiny.tiny_model)
    example_inputs = staticmethod(tiny.example_inputs)
```
"""

from layersync_core.testing.conformance import AdapterConformance
from layersync_core.testing.probe import lively, look, perturbed, raw_outputs, scatter_weights, seed_everything

__all__ = [
    "AdapterConformance",
    "lively",
    "look",
    "perturbed",
    "raw_outputs",
    "scatter_weights",
    "seed_everything",
]
