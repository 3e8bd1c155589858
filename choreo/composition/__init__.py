"""The composition root: which broker there is, and which client talks to it. Nobody below names either."""
