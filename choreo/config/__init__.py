"""Where settings come from: the project, its files, the environment, and the broker that `choreo dev` runs."""
