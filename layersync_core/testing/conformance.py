"""The checks that every adapter must pass, as one pytest class to subclass."""

from __future__ import annotations

from layersync_core.testing.tokens import TokenChecks
from layersync_core.testing.training import TrainingChecks


class AdapterConformance(TokenChecks, TrainingChecks):
    """Subclass this in a pytest file and give the family, or an adapter with a tiny model and its inputs.

    ```python
    class TestMine(AdapterConformance):
        family = "mine"
        depth = 4  # how many blocks the tiny model has
    ```

    The family's package provides ``adapter``, ``tiny_model`` and ``example_inputs``; attributes of the class take
    precedence, such as another model of the family with its own inputs:

    ```python
    class TestOriginal(AdapterConformance):
        family = "mine"
        tiny_model = OriginalTransformer
        example_inputs = original_inputs
    ```

    The attributes are described in ``Subject``, which has no checks. A failure says what is probably wrong in the
    adapter, and what to write instead, as far as the model's forward shows it.

    Examples:
        >>> from layersync_core.testing import AdapterConformance
        >>> class TestDiT(AdapterConformance):  # in a test file, where pytest runs every check of it
        ...     family = "dit"
        ...     depth = 6
        >>> TestDiT().test_knows_the_model(TestDiT.tiny_model())
    """
