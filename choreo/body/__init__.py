"""The body of an event: how a model becomes JSON and is read back."""
