"""Retrospective tuning: which weight would have saved most on the requests just seen."""
