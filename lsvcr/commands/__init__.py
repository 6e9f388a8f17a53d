"""The sub-commands of `lsvcr`, by what they are for; each imports what it needs when it runs: help is instant."""
