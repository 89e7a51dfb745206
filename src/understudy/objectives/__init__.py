"""Losses of a group. An export here is the registry row."""

from understudy.objectives.local_fvu import LocalFVU as LocalFVU
