"""What the tests of single recommenders share with those of stage two."""

from tests.training.conftest import fresh_accelerator

__all__ = ["fresh_accelerator"]
