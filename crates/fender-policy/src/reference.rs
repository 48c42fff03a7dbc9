//! A slow, obvious evaluator, for tests.
