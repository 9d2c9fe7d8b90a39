"""Measured figures as rows of JSON, and the pages, tables and pictures that quote them."""
