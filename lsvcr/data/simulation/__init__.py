"""A small video world with a planted truth, written in the KuaiComt raw format."""

from lsvcr.data.simulation.simulate import simulate

__all__ = ["simulate"]
