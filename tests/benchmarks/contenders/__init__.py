"""One file per contender; each is a program that does one piece of work and prints what it measured."""
