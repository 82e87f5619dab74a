"""Changes that survive and that no test could notice, each with the reason: counted apart, not as killed."""

from __future__ import annotations

EQUIVALENT: dict[tuple[str, str, str], str] = {}
"""By module, line and changed line: why nothing else happens."""
