"""The trace lab: what would a policy have saved on a trace with this much memory?"""
