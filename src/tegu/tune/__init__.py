"""Settings with receipts."""
