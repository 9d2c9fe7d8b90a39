"""Retrospective tuning: which policy and weight would have saved most on the requests just seen."""
