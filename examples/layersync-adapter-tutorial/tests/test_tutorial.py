from __future__ import annotations

from layersync_core.testing import AdapterConformance

from layersync_adapter_tutorial import tiny


class TestTutorial(AdapterConformance):
    family = "tutorial"
    depth = 4

    @staticmethod
    def longer_text(inputs):
        longer = tiny.example_inputs(None, 2, text=9)
        return inputs | {name: longer[name] for name in ("prompt_embeds",)}
