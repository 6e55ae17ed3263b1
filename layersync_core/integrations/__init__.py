"""LayerSync in training loops that belong to a library: one module per library, which imports that library alone.

They are part of core, since whoever has the library then needs nothing more.
"""
