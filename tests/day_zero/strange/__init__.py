"""Modules of models as a new diffusers might have them: one that works, and those that go wrong in their own ways."""
