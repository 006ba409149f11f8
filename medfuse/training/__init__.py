"""Fitting: one visible loop, exact resume, members over seeds and inner folds."""
