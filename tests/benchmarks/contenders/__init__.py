"""One file per contender; each is a program that does one workload and prints what it measured."""
