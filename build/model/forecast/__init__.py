"""Forecasts: the next values of a series with a spread, from the rows before them."""
