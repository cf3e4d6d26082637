"""Trains, evaluates and applies the hierarchical species and disease model."""
