"""Other recommenders under the same protocol and evaluator: what the product is measured against."""
