"""hemseg: intracranial hemorrhage on non-contrast head CT, outlined in 3D. Research software, not a medical device."""

__version__ = "0.1.0"
