"""Vendors' interfaces, spoken to one engine."""
