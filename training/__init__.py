"""How the bundled micro models were made."""
