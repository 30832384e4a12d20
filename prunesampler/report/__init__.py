"""Texts, figures and plots of selections."""
