"""What may be typed into a field, in words."""

from __future__ import annotations

from layersync_plugin_webui.language import gettext as _
from layersync_plugin_webui.training.fields import Field


def limits(field: Field) -> str:
    """Return the limits of a number; empty if it has none."""
    known = {name: f"{value:g}" for name, value in field.limits.items()}
    parts = []
    if "least" in known:
        parts.append(_("at least %(limit)s") % {"limit": known["least"]})
    if "above" in known:
        parts.append(_("more than %(limit)s") % {"limit": known["above"]})
    if "most" in known:
        parts.append(_("at most %(limit)s") % {"limit": known["most"]})
    if "below" in known:
        parts.append(_("less than %(limit)s") % {"limit": known["below"]})
    return ", ".join(parts)
