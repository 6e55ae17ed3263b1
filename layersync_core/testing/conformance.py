"""What every adapter must hold, as one pytest class to subclass."""

from __future__ import annotations

from layersync_core.testing.tokens import TokenChecks
from layersync_core.testing.training import TrainingChecks


class AdapterConformance(TokenChecks, TrainingChecks):
    """Subclass in a pytest file and say the family, or an adapter with a tiny model and its inputs.

    ```python
    class TestMine(AdapterConformance):
        family = "mine"
        depth = 4  # how many blocks the tiny model has
    ```

    The family's package gives ``adapter``, ``tiny_model`` and ``example_inputs``; what the class says itself comes
    first, such as another model of the family with inputs of its own:

    ```python
    class TestOriginal(AdapterConformance):
        family = "mine"
        tiny_model = OriginalTransformer
        example_inputs = original_inputs
    ```

    The attributes are described in ``Subject``, which has no checks; what fails says what in the adapter is likely
    wrong, and what to write instead, as far as the model's forward shows it.
    """
